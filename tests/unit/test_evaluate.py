"""Scores that mean something."""

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from dsrl.errors import SimulatorFailed
from dsrl.evaluate import evaluate, evaluation_envs
from dsrl.pretrained.toy import ToyPolicy
from dsrl.probe import Probe, probe
from dsrl.statistics import paired_difference, wilson
from dsrl.wrappers import make_vec_env
from dsrl.wrappers.toy import PointReach

POLICY = ToyPolicy()


def score(n_envs: int, **kwargs):
    with evaluation_envs(POLICY, n_envs=n_envs) as envs:
        return evaluate(POLICY, envs, **{"episodes": 30, "seed": 1, **kwargs})


def test_an_evaluation_does_not_depend_on_how_many_environments_share_it():
    one, seven = score(1), score(7)
    np.testing.assert_array_equal(one.success, seven.success)
    np.testing.assert_array_equal(one.lengths, seven.lengths)


def test_an_evaluation_does_not_depend_on_what_was_played_before():
    with evaluation_envs(POLICY, n_envs=3) as envs:
        first = evaluate(POLICY, envs, episodes=20, seed=1)
        evaluate(POLICY, envs, episodes=11, seed=99)
        second = evaluate(POLICY, envs, episodes=20, seed=1)
    np.testing.assert_array_equal(first.success, second.success)
    np.testing.assert_array_equal(first.lengths, second.lengths)


def test_every_policy_starts_from_the_same_states():
    starts: dict[str, list] = {"base": [], "zero": []}
    with evaluation_envs(POLICY, n_envs=4) as envs:
        for name, scale in (("base", 1.0), ("zero", 0.0)):
            evaluate(
                POLICY, envs, episodes=4, seed=5, noise_scale=scale, watch=lambda c, *_, k=name: starts[k].append(c)
            )
    torch.testing.assert_close(starts["base"][0], starts["zero"][0])
    assert len(np.unique(starts["base"][0].numpy(), axis=0)) == 4


def test_repeats_share_the_start_and_differ_in_the_noise():
    seen = []
    with evaluation_envs(POLICY, n_envs=4) as envs:
        result = evaluate(
            POLICY, envs, episodes=1, seed=5, repeats=4, watch=lambda cond, noise, _: seen.append((cond, noise))
        )
    assert result.success.shape == (4,)
    cond, noise = seen[0]
    assert (cond == cond[0]).all() and len(np.unique(noise.numpy(), axis=0)) == 4


def test_env_steps_and_returns_are_counted_per_episode():
    result = score(4, noise_scale=0.0)
    failed = ~result.success
    assert failed.any() and (result.lengths[failed] == 32).all() and (result.returns[failed] == 0).all()


def test_observations_that_are_not_finite_end_the_evaluation():
    with evaluation_envs(POLICY, n_envs=1) as envs:
        envs.envs[0].unwrapped.observation_space.dtype = np.float32
        reset = envs.reset
        envs.reset = lambda: reset() * np.nan
        with pytest.raises(SimulatorFailed, match="not finite"):
            evaluate(POLICY, envs, episodes=1, seed=0)


@pytest.mark.parametrize("nothing", [{"episodes": 0}, {"episodes": -1}, {"repeats": 0}])
def test_nothing_to_play_is_an_error(nothing):
    with pytest.raises(ValueError, match="at least one of both"):
        score(1, **nothing)


class Endless(PointReach):
    """Goes on after success."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, False, truncated, info


def test_success_held_at_the_end_is_told_apart():
    envs = make_vec_env(lambda: TimeLimit(Endless(), 32), POLICY.spec, 3, reward="step-cost")
    result = evaluate(POLICY, envs, episodes=30, seed=1)
    assert (result.lengths == 32).all()
    assert not (result.held & ~result.success).any() and (result.success & ~result.held).any()


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_the_paired_difference_counts_only_what_changed():
    base = np.array([1] * 40 + [0] * 60, bool)
    steered = np.array([1] * 38 + [0] * 2 + [1] * 50 + [0] * 10, bool)
    difference, low, high, p = paired_difference(base, steered)
    assert difference == pytest.approx(0.48)
    assert low < 0.48 < high and high - low < 0.25
    assert p < 1e-10
    assert paired_difference(base, base)[3] == 1.0


def test_pass_at_n_is_unbiased():
    with evaluation_envs(POLICY, n_envs=8) as envs:
        check = probe(POLICY, envs, states=20, repeats=8)
    wins = check.base.success.reshape(20, 8)
    assert check.pass_at(1) == pytest.approx(wins.mean())
    assert check.pass_at(8) == pytest.approx(wins.any(axis=1).mean())
    pairs = [1 - (~row[:, None] & ~row[None])[np.triu_indices(8, 1)].mean() for row in wins]
    assert check.pass_at(2) == pytest.approx(np.mean(pairs))
    assert check.steerable and check.spread.shape == (2,)


def test_a_policy_without_spread_is_called_unsteerable():
    with evaluation_envs(POLICY, n_envs=8) as envs:
        hopeless = evaluate(POLICY, envs, episodes=8, seed=0, repeats=4, noise_scale=0.0)
    check = Probe(hopeless, hopeless, hopeless, hopeless, repeats=4, spread=np.zeros(2))
    assert not check.steerable and "little to choose from" in check.verdict()
