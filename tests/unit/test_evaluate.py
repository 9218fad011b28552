"""Scores that mean something."""

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

from dsrl.compare import compare
from dsrl.episodes import Episodes, episodes_path, jerk, low_dimensional
from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.evaluate import evaluate, evaluation_envs
from dsrl.pretrained.toy import ToyPolicy
from dsrl.probe import Probe, probe
from dsrl.statistics import paired_difference, paired_means, wilson
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
    np.testing.assert_array_equal(one.starts, seven.starts)
    np.testing.assert_allclose(one.jerk, seven.jerk, rtol=1e-5)


def test_the_first_observation_of_every_episode_is_kept():
    """Those of the seeds themselves, in their order, whoever plays beside them."""
    result = score(4)
    env = PointReach()
    np.testing.assert_array_equal(result.starts, [env.reset(seed=1 + episode)[0] for episode in range(30)])
    assert result.columns == ("obs[0]", "obs[1]", "obs[2]", "obs[3]") and result.decision_seconds > 0


def test_the_jerk_is_that_of_what_was_executed_over_the_whole_episode():
    played = []
    with evaluation_envs(POLICY, n_envs=1) as envs:
        step = envs.envs[0].unwrapped.step
        envs.envs[0].unwrapped.step = lambda action: played.append(action.copy()) or step(action)
        result = evaluate(POLICY, envs, episodes=1, seed=3)
    assert len(played) == result.lengths[0] > POLICY.spec.n_action_steps
    assert result.jerk[0] == pytest.approx(np.square(np.diff(played, n=2, axis=0)).mean(), rel=1e-6)
    line = np.linspace([0.0, 1.0], [1.0, -1.0], 7)
    assert jerk(line) == pytest.approx(0) and jerk(line**2) > 0 and np.isnan(jerk(line[:2]))


def test_pixels_are_no_initial_state():
    where, names = low_dimensional({"camera": (3, 4, 4), "pos": (2,), "grip": ()})
    assert where.tolist() == [48, 49, 50] and names == ("pos[0]", "pos[1]", "grip[0]")


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


def test_mcnemars_p_value_is_the_sign_test_of_what_changed():
    # 8 gained, 1 lost: 2 * (1 + 9) / 2^9
    base, steered = np.repeat([0, 1, 1, 0], [8, 1, 20, 11]), np.repeat([1, 0, 1, 0], [8, 1, 20, 11])
    assert paired_difference(base, steered).p == pytest.approx(20 / 512)


def test_the_paired_difference_of_a_number():
    rng = np.random.default_rng(1)
    first = rng.normal(size=200)
    second = first + rng.normal(0.3, 0.5, size=200)
    gain = paired_means(first, second)
    half = 1.96 * np.std(second - first, ddof=1) / np.sqrt(200)
    assert gain.difference == pytest.approx((second - first).mean())
    assert (gain.low, gain.high) == pytest.approx((gain.difference - half, gain.difference + half), abs=0.01)
    assert gain.p < 1e-3 and paired_means(first, first).p == 1
    assert paired_means(np.r_[first, np.nan], np.r_[second, 0.0]) == gain
    # 5 signs: all of them alike once in 16
    assert paired_means(np.zeros(5), np.ones(5)).p == pytest.approx(2 / 32, abs=0.01)
    assert np.isnan(paired_means(np.full(3, np.nan), np.zeros(3)).p)


def test_a_comparison_keeps_its_episodes(tmp_path):
    with evaluation_envs(POLICY, n_envs=4) as envs:
        comparison = compare(POLICY, None, envs, episodes=6, seed=1, repeats=3)
    comparison.save(tmp_path / "comparison.json")
    kept = Episodes.load(episodes_path(tmp_path / "comparison.json"))
    assert kept.policies == ("base, N(0, I)", "zero noise", "half the noise") and kept.starts.shape == (6, 4)
    for row in comparison.rows()[:3]:
        assert kept.of(row["policy"]).mean() == row["success_rate"]
        assert kept.of(row["policy"], "lengths").mean() == row["mean_length"]
    assert comparison.env_steps == comparison.base.lengths.sum() + kept.lengths[1:].sum()
    (tmp_path / "broken.npz").write_bytes((tmp_path / "comparison_episodes.npz").read_bytes()[:300])
    with pytest.raises(DsrlError, match=r"broken\.npz does not hold the episodes.*dsrl evaluate"):
        Episodes.load(tmp_path / "broken.npz")


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


def test_an_evaluation_is_the_same_to_the_bit_for_any_number_of_environments():
    network = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.SiLU(), torch.nn.Linear(64, 8))

    class Chaotic(ToyPolicy):
        """Every last bit of its matrix products shows in what it plays."""

        def decode(self, cond, noise):
            with torch.no_grad():
                bits = network(torch.cat([cond, noise.flatten(1)], dim=1)).view(torch.int32)
            return super().decode(cond, noise) + (bits % 97).view(-1, 4, 2) / 500

    results = []
    for n_envs in (1, 3, 4, 6):
        envs = make_vec_env(POLICY.spec.env, POLICY.spec, n_envs)
        results.append(evaluate(Chaotic(), envs, episodes=10, seed=1))
        envs.close()
    for other in results[1:]:
        np.testing.assert_array_equal(other.returns, results[0].returns)
        np.testing.assert_array_equal(other.lengths, results[0].lengths)
        np.testing.assert_array_equal(other.jerk, results[0].jerk)
