"""The toy problem keeps its promises: the noise matters, and only a choice that looks at the state solves it."""

import time
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from dsrl.policy import FrozenPolicy
from dsrl.pretrained.toy import ToyPolicy
from dsrl.wrappers import toy
from dsrl.wrappers.toy import MAX_EPISODE_STEPS, PointReach

Choice = Callable[[Tensor, Tensor], Tensor]
"""observations ``(B, 1, 4)``, prior noise ``(B, 4, 2)`` -> noise ``(B, 4, 2)``"""


def best(obs: Tensor, noise: Tensor) -> Tensor:
    side = torch.where(obs[:, 0, 2] >= 0, 1.0, -1.0)
    return torch.ones_like(noise) * side[:, None, None]


def successes(choose: Choice, episodes: int = 300, seed: int = 0) -> np.ndarray:
    """``(episodes,)`` bool, on the same starts whatever the noise; all episodes side by side."""
    policy, generator = ToyPolicy(), torch.Generator().manual_seed(seed)
    envs = [PointReach() for _ in range(episodes)]
    obs = np.stack([env.reset(seed=1000 + i)[0] for i, env in enumerate(envs)])
    success = np.zeros(episodes, bool)
    for _ in range(MAX_EPISODE_STEPS // policy.spec.n_action_steps):
        batch = torch.from_numpy(obs)[:, None]
        noise = choose(batch, torch.randn(episodes, *policy.spec.noise_shape, generator=generator))
        for i, chunk in enumerate(policy.sample(batch, noise).numpy()):
            for action in chunk:
                if not success[i]:
                    obs[i], _, success[i], _, _ = envs[i].step(action)
    return success


def test_the_base_policy_succeeds_now_and_then():
    assert 0.3 <= successes(lambda obs, noise: noise).mean() <= 0.6


def test_zero_noise_does_not_solve_it():
    assert successes(lambda obs, noise: 0 * noise).mean() <= 0.05


def test_less_noise_is_worse_than_the_base_policy():
    base = successes(lambda obs, noise: noise).mean()
    assert successes(lambda obs, noise: noise / 2).mean() < base - 0.15


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_constant_noise_solves_it(sign):
    assert successes(lambda obs, noise: torch.full_like(noise, sign)).mean() < 0.7


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_noise_that_looks_at_the_state_solves_it(scale):
    assert successes(lambda obs, noise: scale * best(obs, noise)).mean() == 1.0


def test_one_of_eight_tries_succeeds():
    tries = [successes(lambda obs, noise: noise, episodes=100, seed=seed) for seed in range(8)]
    assert np.any(tries, axis=0).mean() >= 0.95


def test_the_policy_fulfils_the_contract():
    policy = ToyPolicy()
    assert isinstance(policy, FrozenPolicy)
    obs, noise = torch.rand(5, 1, 4) - 0.5, torch.randn(5, 4, 2)
    chunk = policy.sample(obs, noise)
    assert chunk.shape == (5, policy.spec.n_action_steps, policy.spec.action_dim)
    assert torch.equal(chunk, policy.sample(obs, noise))
    assert torch.equal(chunk, policy.sample({"obs": obs}, noise))
    assert torch.equal(chunk[2:3], policy.sample(obs[2:3], noise[2:3]))
    assert not torch.equal(chunk, policy.sample(obs, noise + 0.1))
    assert policy.encode(obs).shape == (5, policy.cond_dim)
    assert ToyPolicy().spec.sha256 == policy.spec.sha256 and len(policy.spec.sha256) == 64
    with pytest.raises(ValueError, match="noise has shape"):
        policy.sample(obs, noise[:, :2])


def test_the_environment_keeps_gymnasiums_rules(toy_env):
    check_env(toy_env.unwrapped, skip_render_check=True)
    toy.register()  # again: nothing happens
    assert gymnasium.spec(toy.ENV_ID).max_episode_steps == MAX_EPISODE_STEPS


def test_same_seed_same_episode():
    first, second = PointReach(), PointReach()
    first.reset(seed=3)
    for env in (first, second):
        env.reset(seed=7)
    steps = [env.step(np.array([0.3, -1.0], np.float32))[0] for env in (first, second)]
    np.testing.assert_array_equal(*steps)
    assert not np.array_equal(first.reset(seed=8)[0], second.reset(seed=9)[0])


def test_arriving_terminates_with_reward_and_the_time_limit_truncates(toy_env):
    obs, _ = toy_env.reset(seed=0)
    terminated = False
    while not terminated:
        direction = obs[2:] - obs[:2]
        obs, reward, terminated, truncated, info = toy_env.step(direction / np.linalg.norm(direction))
        assert not truncated and reward == float(terminated) == float(info["success"])

    toy_env.reset(seed=0)
    ends = [toy_env.step(np.zeros(2, np.float32)) for _ in range(MAX_EPISODE_STEPS)]
    assert [end[3] for end in ends] == [False] * (MAX_EPISODE_STEPS - 1) + [True]
    assert not any(end[2] or end[4]["success"] for end in ends)


def test_the_environment_is_fast():
    env = PointReach()
    env.reset(seed=0)
    start = time.process_time()  # of this process alone: the machine may be busy
    for _ in range(10_000):
        env.step(np.zeros(2, np.float32))
    assert 10_000 / (time.process_time() - start) > 30_000
