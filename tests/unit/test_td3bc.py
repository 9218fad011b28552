"""Offline agents on recorded and synthetic batches."""

from dataclasses import replace

import pytest
import torch

from dsrl.errors import DsrlError
from dsrl.mixed_batches import MixedBatches, join, train_offline
from dsrl.policy import PolicySpec
from dsrl.pretrained import load_policy, save_policy
from dsrl.td3bc import IQL, TD3BC, TD3BCConfig, squashed_policy
from dsrl.transitions import Transitions
from dsrl.values import ValuesConfig

SPEC = PolicySpec({"obs": (1,)}, action_dim=1, horizon=1, n_action_steps=1)
LOW, HIGH = torch.tensor([-2.0]), torch.tensor([2.0])


def bandit(count=2_000, seed=0, gamma=0.9):
    """One decision per episode: actions anywhere, the best one is ``obs``, recorded ones are around 0."""
    generator = torch.Generator().manual_seed(seed)
    obs = 2 * torch.rand(count, 1, generator=generator) - 1
    action = (0.6 * torch.randn(count, 1, generator=generator)).clamp(-2, 2)
    reward = 1 - (action - obs).square().squeeze(1)
    ends, ones = torch.ones(count, dtype=torch.bool), torch.ones(count)
    return Transitions(obs, action, reward, gamma * ones, obs, ends, reward, 0 * ones, torch.arange(count), gamma)


def learned(agent, steps=400, **parts):
    train_offline(agent, MixedBatches(bandit(), batch_size=128, **parts), steps)
    obs = torch.linspace(-0.9, 0.9, 19)[:, None]
    return obs, TD3BC.play(obs, agent.policy).detach()


def test_td3bc_finds_better_actions_than_those_recorded_and_cloning_alone_does_not():
    policy = squashed_policy(SPEC, LOW, HIGH, learn_std=False, seed=0)
    obs, action = learned(TD3BC(policy, TD3BCConfig(lr=2e-3, hidden_dims=(64, 64), tau=0.05)))
    better = float((action - obs).square().mean())
    policy = squashed_policy(SPEC, LOW, HIGH, learn_std=False, seed=0)
    _, cloned = learned(TD3BC(policy, TD3BCConfig(alpha=0.0, lr=2e-3, hidden_dims=(64, 64))))
    assert float(cloned.abs().mean()) < 0.15, "the mean of what was recorded"
    assert better < 0.5 * float((cloned - obs).square().mean())


def test_iql_prefers_what_was_good():
    policy = squashed_policy(SPEC, LOW, HIGH, learn_std=True, seed=0)
    values = ValuesConfig(expectile=0.7, lr=2e-3, hidden_dims=(64, 64), tau=0.05)
    obs, action = learned(IQL(policy, values, beta=3.0))
    assert float((action - obs).square().mean()) < 0.4 * float(obs.square().mean())


def test_a_squashed_policy_keeps_to_the_limits_and_comes_back_from_its_file(tmp_path):
    policy = squashed_policy(SPEC, torch.tensor([-2.0]), torch.tensor([6.0]), learn_std=True, seed=0)
    with torch.no_grad():
        policy.denoiser.layers.linears[-1].bias.fill_(100.0)
    obs, still = torch.zeros(3, 1, 1), torch.zeros(3, 1, 1)
    torch.testing.assert_close(policy.sample(obs, still), torch.full((3, 1, 1), 6.0))
    again = load_policy(save_policy(policy.freeze(), tmp_path / "p.pt"))
    assert torch.equal(policy.sample(obs, still), again.sample(obs, still)) and again.denoiser.squash


def test_the_share_of_a_batch_is_synthetic_and_made_anew_in_time():
    real, made = bandit(50), bandit(40, seed=1)
    real.cond.fill_(0), made.cond.fill_(1)
    batches = MixedBatches(real, made, share=240 / 256, batch_size=256)
    assert int(batches.draw().cond.sum()) == 240
    assert not MixedBatches(real, None, share=0.9).draw().cond.any()
    seen = []

    class Watcher:
        def update(self, batch):
            seen.append(float(batch.cond.max()))
            return {"train/loss": torch.zeros(())}

    newer = replace(made, cond=2 * made.cond)
    train_offline(Watcher(), batches, 8, refresh=lambda: newer, refresh_every=3)
    assert seen == [1, 1, 1, 2, 2, 2, 2, 2]
    with pytest.raises(DsrlError, match=r"is discounted by 0.9 per env step, .* by 0.5"):
        join(real, bandit(3, gamma=0.5))
    with pytest.raises(DsrlError, match=r"synthetic share of a batch is 1.5"):
        MixedBatches(real, made, share=1.5)
