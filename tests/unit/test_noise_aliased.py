"""Noise-aliased SAC: what its targets are, whom its gradients touch, what it asks of the frozen policy."""

from dataclasses import replace

import pytest
import torch
from na_agents import COND, NOISE, agent, toy_envs
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from torch import nn

from dsrl.agents import build_sac
from dsrl.algorithms import return_range
from dsrl.config import FinetuneConfig, NAConfig, SACConfig
from dsrl.noise_aliased import NoiseAliasedSAC
from dsrl.noise_losses import NoiseLosses
from dsrl.pretrained.toy import ToyPolicy


@pytest.fixture(scope="module")
def played() -> NoiseAliasedSAC:
    """An agent that has learned for a while; tests must not change it."""
    model = agent()
    model.learn(200)
    return model


def moved(model: NoiseAliasedSAC, amount: float = 0.3) -> NoiseAliasedSAC:
    """The same with networks that say something else than at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return model


# -- what is asked of the frozen policy -------------------------------------------------------------------------------


class Counting(ToyPolicy):
    """Counts how often, and for how many rows, it is asked to denoise."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def decode(self, cond, noise):
        self.rows.append(len(cond))
        return super().decode(cond, noise)


def decodes_of_training(**changes) -> list[int]:
    policy = Counting()
    model = agent(envs=toy_envs(policy=policy), **changes)
    model.learn(60)
    policy.rows.clear()
    model.train(7, batch_size=16)
    return policy.rows


def test_a_gradient_step_on_pools_does_not_call_the_frozen_policy():
    assert decodes_of_training() == []


def test_the_published_update_denoises_twice_per_gradient_step():
    """Once for the noise that the actor would play next, once for the noise that is distilled."""
    assert decodes_of_training(targets="td", pool_size=0, backup="actor", deploy="actor") == 7 * [16, 16]


def test_a_refresh_denoises_the_pools_of_a_share_of_the_batch():
    rows = decodes_of_training(pool_size=4, candidates=4, pool_refresh=0.25)
    assert len(rows) == 14 and max(rows) <= 4 * 4, "pools of now and of next, for up to a quarter of 16 observations"


def test_a_backup_of_a_pool_needs_a_pool():
    with pytest.raises(ValueError, match="backup='max' needs a pool"):
        agent(targets="td", pool_size=0)


class Mixing(ToyPolicy):
    """Multiplies by a matrix, as every network does."""

    def decode(self, cond, noise):
        return torch.tanh(super().decode(cond, noise).flatten(1) @ torch.full((NOISE, NOISE), 0.3)).view(-1, 4, 2)


def test_pools_can_be_denoised_in_half_the_precision():
    envs = toy_envs(bound=10.0, policy=Mixing())
    model, half = agent(envs=envs), agent(envs=envs, decode_bfloat16=True)
    cond, noise = torch.randn(32, COND), torch.randn(32, NOISE)
    exact, rough = (each.decoder.decode(cond, noise) for each in (model, half))
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)


def test_a_compiled_update_is_traced_once():
    model = agent(compile_update=True)
    model.losses = model.losses.compiled(backend="eager")  # the tracing is the same, and no C++ compiler is asked
    model.learn(100)
    with torch.compiler.set_stance("fail_on_recompile"):
        model.learn(100, reset_num_timesteps=False)
        with pytest.raises(RuntimeError, match="recompile"):
            model.train(1, batch_size=17)


# -- targets ----------------------------------------------------------------------------------------------------------


def batch_of(model: NoiseAliasedSAC, size: int = 64, **options):
    return model.replay_buffer.sample(size, unknown_noise=True, **options)


@pytest.mark.parametrize("backup", ["max", "mean"])
def test_a_target_is_the_reward_and_the_discounted_value_of_the_next_pool(backup: str):
    model = moved(agent(backup=backup, lower_bound=False, critic_reduction="min"))
    model.learn(120)
    batch = batch_of(model)
    pooled = model.critic_target(batch.next_observations, batch.next_pool.chunks).amin(dim=0)
    value = pooled.amax(dim=1) if backup == "max" else pooled.mean(dim=1)
    expected = batch.rewards[:, 0] + (1 - batch.dones[:, 0]) * batch.discounts[:, 0] * value
    assert batch.dones.any()
    torch.testing.assert_close(model.losses.bootstrap(batch, model._price()), expected)


def test_no_target_falls_below_what_an_episode_that_terminated_has_earned():
    model = agent(lower_bound=True)
    model.learn(200)
    with torch.no_grad():
        model.critic_target.biases[-1].fill_(-50.0)
    batch = batch_of(model, 200)
    finished = batch.remaining[:, 0] == 0
    target = model.losses.bootstrap(batch, model._price())
    assert finished.any() and not finished.all()
    assert (target[finished] >= batch.earned[finished, 0]).all()
    assert (target[~finished] < 0).all(), "what was not played to its end proves nothing"


def test_targets_are_clamped_to_what_the_reward_can_give(played: NoiseAliasedSAC, monkeypatch):
    losses = replace(played.losses, target_range=(0.2, 0.3))
    monkeypatch.setattr(
        played.critic, "forward", lambda cond, chunks, **_: torch.zeros(3, len(cond), requires_grad=True)
    )
    for targets in (torch.linspace(-1, 2, 64), torch.zeros(64), torch.ones(64)):
        loss, _ = losses.critic(batch_of(played), targets)
        # of three critics that say 0: half the squared target each
        expected = 1.5 * targets.clamp(0.2, 0.3).square().mean()
        torch.testing.assert_close(loss.detach(), expected)


def test_the_fit_learns_returns_where_an_episode_terminated(played: NoiseAliasedSAC):
    batch = batch_of(played, 200, ends=True)
    finished = batch.remaining[:, 0] == 0
    torch.testing.assert_close(played.losses.returns(batch, played._price())[finished], batch.earned[finished, 0])


def test_what_the_critics_regress_on_can_be_chosen(monkeypatch):
    asked = []
    for name in ("returns", "bootstrap"):
        real = getattr(NoiseLosses, name)
        monkeypatch.setattr(NoiseLosses, name, lambda *args, real=real, name=name: asked.append(name) or real(*args))
    for targets, expected in (("returns", {"returns"}), ("td", {"bootstrap"})):
        model = agent(targets=targets, fit_updates=0, fit_actor_updates=0)
        model.learn(60)
        assert set(asked) == expected
        asked.clear()


@pytest.mark.parametrize(
    ("reward", "per_chunk", "expected"),
    [("success", False, (0.0, 1.0)), ("step-cost", False, (-10.0, 0.0)), ("step-cost", True, (-40.0, 0.0))],
)
def test_the_range_of_returns_follows_the_reward(reward: str, per_chunk: bool, expected: tuple[float, float]):
    config = FinetuneConfig(reward=reward, gamma=0.9, na=NAConfig(discount_per_chunk=per_chunk))
    assert return_range(config, 4) == pytest.approx(expected)
    assert return_range(FinetuneConfig(reward="dense"), 4) == (-float("inf"), float("inf"))


class Identity(ToyPolicy):
    """Its chunk is its noise: a critic on chunks is a critic on noise, which is what stock SAC has."""

    def decode(self, cond, noise):
        return noise.clone()


def test_where_the_chunk_is_the_noise_the_published_target_is_that_of_stock_sac(monkeypatch):
    """Stock SAC with the same weights is given the same batch; what it regresses on is caught at its loss."""
    policy = Identity()
    settings = {
        "targets": "td",
        "pool_size": 0,
        "backup": "actor",
        "soft_backup": True,
        "lower_bound": False,
        "deploy": "actor",
    }
    settings |= {"critic_reduction": "min"}
    networks = {"n_critics": 2, "net_arch": [16, 16]}
    envs = toy_envs(bound=1.0, policy=policy)
    model = moved(agent(envs=envs, actor="box", policy_kwargs=networks, ent_coef=0.2, **settings))
    model.learn(60)
    config = FinetuneConfig(algo="sac", hidden_dims=(16, 16), sac=SACConfig(n_critics=2, ent_coef="0.2"))
    stock = build_sac(config, toy_envs(bound=1.0, policy=policy), 4, seed=0, device="cpu")
    copy_weights(model, stock)
    batch, targets = batch_of(model), []

    def loss(q, target):
        targets.append(target)
        return (q - target).square().mean()

    monkeypatch.setattr("stable_baselines3.sac.sac.F.mse_loss", loss)
    monkeypatch.setattr(stock.replay_buffer, "sample", lambda *_, **__: batch)
    stock.set_logger(configure(None, []))
    torch.manual_seed(3)
    stock.train(1, 64)
    torch.manual_seed(3)
    torch.randn(64, NOISE)  # stock SAC draws its actor's action first
    # stable-baselines3 adds 1e-6 inside a logarithm, which is felt where tanh saturates
    torch.testing.assert_close(model.losses.bootstrap(batch, model._price()), targets[0][:, 0], atol=3e-3, rtol=1e-5)


def copy_weights(model: NoiseAliasedSAC, stock: SAC) -> None:
    """Of a boxed actor and the target critics."""
    actor = model.policy.actor
    stock.actor.latent_pi.load_state_dict(actor.trunk.state_dict())
    stock.actor.mu.load_state_dict(actor.mean.state_dict())
    stock.actor.log_std.load_state_dict(actor.log_std.state_dict())
    for index, network in enumerate(stock.critic_target.q_networks):
        linears = [layer for layer in network if isinstance(layer, nn.Linear)]
        norms = [layer for layer in network if isinstance(layer, nn.LayerNorm)]
        target = model.critic_target
        for layer, weight, bias in zip(linears, target.weights, target.biases, strict=True):
            layer.load_state_dict({"weight": weight[index].T, "bias": bias[index, 0]})
        for layer, scale, shift in zip(norms, target.scales, target.shifts, strict=True):
            layer.load_state_dict({"weight": scale[index, 0], "bias": shift[index, 0]})


# -- gradients --------------------------------------------------------------------------------------------------------


def test_the_noise_critic_learns_to_say_what_the_critic_says_of_the_decoded_noise():
    model = agent(learning_rate=3e-3, distill_noises=4, critic_reduction="min")
    model.learn(200, log_interval=None)
    with torch.no_grad():
        for weights in model.critic.weights:
            weights.mul_(2.0)  # a critic that tells chunks apart
    batch = batch_of(model, 400)
    wanted = model.score(batch.observations, batch.pool.chunks).detach()

    def error() -> float:
        said = model.policy.noise_critic(batch.observations, 10.0 * batch.pool.actions).mean(dim=0)
        return ((said - wanted).square().mean() / wanted.var()).item()

    before = error()
    for _ in range(800):
        model._step(model.policy.noise_critic, model.losses.distill(batch_of(model, 128)))
    assert error() < 0.15 < before


def test_every_loss_moves_its_own_network_only():
    model = moved(agent())
    model.learn(60)
    batch = batch_of(model)
    parts = {"actor": model.policy.actor, "critic": model.critic, "noise_critic": model.policy.noise_critic}
    losses = {
        "actor": lambda: model.losses.actor(batch, model._price())[0],
        "critic": lambda: model.losses.critic(batch, model.losses.bootstrap(batch, model._price()))[0],
        "noise_critic": lambda: model.losses.distill(batch),
    }
    for name, loss in losses.items():
        for part in parts.values():
            part.zero_grad(set_to_none=True)
        before = {other: [p.detach().clone() for p in part.parameters()] for other, part in parts.items()}
        model._step(parts[name], loss())
        for other, part in parts.items():
            changed = any(not torch.equal(a, b) for a, b in zip(before[other], part.parameters(), strict=True))
            assert changed == (other == name), f"the loss of {name} and {other}"
            assert other == name or all(parameter.grad is None for parameter in part.parameters())


def test_the_adapted_price_rises_while_the_actor_is_too_far_away_and_falls_again():
    model = agent(ent_coef="auto_0.1", target_divergence=2.0, ent_coef_max=0.11, ent_coef_learning_rate=3e-4)
    model.learn(60)
    prices = [model._price().item()]
    for divergence in (torch.full((16,), 0.5), torch.full((16,), 30.0)):
        for _ in range(2000):
            model._adapt_price(divergence)
        prices.append(model._price().item())
    assert prices[1] < prices[0] and prices[2] == pytest.approx(0.11)


@pytest.mark.parametrize(("given", "expected"), [(None, 1.0), (2.5, 2.5), (0.0, 0.0)])
def test_the_price_aims_at_a_nat_or_what_it_is_told(given: float | None, expected: float, tmp_path):
    model = agent(target_divergence=given)
    assert model.target_entropy == -expected
    model.save(tmp_path / "agent.zip")
    assert type(model).load(tmp_path / "agent.zip", env=model.env).target_entropy == -expected
