"""OGBench's tasks: exact seeds although it draws from numpy's global generator, goals, and data of its mazes."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ogbench")

from dsrl.collect import CollectConfig, collect
from dsrl.data import read_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.wrappers import make_env, resolve_env_spec
from dsrl.wrappers.experts import make_expert

pytestmark = [pytest.mark.integration, pytest.mark.ogbench]

TELEPORT = "ogbench/pointmaze-teleport"
INTO_A_TELEPORT = {"task_info": {"init_ij": (4, 1), "goal_ij": (1, 1)}}


def rollout(env, seed, options=None):
    obs, _ = env.reset(seed=seed, options=options)
    return np.stack([obs, *(env.step(np.array([0.0, 1.0], np.float32))[0] for _ in range(60))])


@pytest.mark.parametrize("options", [None, INTO_A_TELEPORT])
def test_copies_and_repeats_play_the_same_episode(options):
    first, second = make_env(TELEPORT, reward="dense"), make_env(TELEPORT, reward="dense")
    once = rollout(first, 7, options)
    np.random.rand(3)
    rollout(second, 8, options)
    assert np.array_equal(rollout(first, 7, options), once) and np.array_equal(rollout(second, 7, options), once)
    before = np.random.get_state()[1].copy()
    rollout(first, 9, options)
    assert np.array_equal(np.random.get_state()[1], before), "others draw as before"


def test_teleports_are_drawn_by_the_seed():
    env = make_env(TELEPORT, reward="dense")
    ends = [rollout(env, seed, INTO_A_TELEPORT) for seed in range(12)]
    assert all(np.abs(np.diff(end[:, :2], axis=0)).max() > 5 for end in ends), "each was teleported"
    assert len({tuple(end[-1, :2].round()) for end in ends}) > 1


def test_the_goal_is_observed_where_there_are_several():
    env = make_env("ogbench/pointmaze-large")
    assert env.unwrapped.obs_shapes == {"state": (2,), "goal": (2,)}
    goals = {tuple(env.reset(seed=seed)[0][2:].round(-1)) for seed in range(30)}
    assert len(goals) > 2, "a seed draws one of five tasks"
    fixed = make_env(EnvSpec("ogbench", "pointmaze-large", options={"task": 1}))
    assert all(np.linalg.norm(fixed.reset(seed=seed)[0][2:] - [36, 24]) < 2 for seed in range(5))
    assert make_env("ogbench/pointmaze-large-singletask").unwrapped.obs_shapes == {"state": (2,)}
    swapped = make_env(EnvSpec("ogbench", "pointmaze-large", obs_keys=("goal", "state")))
    assert np.array_equal(swapped.reset(seed=3)[0], np.roll(env.reset(seed=3)[0], 2))


def test_success_ends_nothing_but_what_the_reward_ends():
    env = make_env("ogbench/pointmaze-large", reward="step-cost")
    there = {"task_info": {"init_ij": (1, 1), "goal_ij": (1, 1)}}
    env.reset(seed=0, options=there)
    _obs, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert reward == float(info["success"]) - 1 and not terminated and not truncated


def test_a_wanderer_goes_from_goal_to_goal(tmp_path):
    steps = {"max_episode_steps": 1001, "steps_after_success": 1001}
    settings = {"episodes": 3, "action_noise": 0.5, **steps}
    paths = [collect(CollectConfig("ogbench/pointmaze-medium", tmp_path / name, **settings)) for name in ("a", "b")]
    first, second = (read_hdf5(Path(path)) for path in paths)
    assert [len(episode) for episode in first.episodes] == [1001] * 3
    assert all(episode.rewards.sum() > 2 for episode in first.episodes), "several goals each"
    assert np.array_equal(first.episodes[2].actions, second.episodes[2].actions)
    length = np.linalg.norm(first.episodes[0].actions, axis=1).mean()
    assert 0.9 < length < 1.2 and len({tuple(e.obs["state"][0].round()) for e in first.episodes}) == 3


def test_what_is_not_there_is_named():
    with pytest.raises(DsrlError, match=r"no task 'pointmaze-larg'\. Did you mean 'pointmaze-large'"):
        make_env("ogbench/pointmaze-larg")
    with pytest.raises(DsrlError, match="has no observation 'goal'"):
        resolve_env_spec(EnvSpec("ogbench", "pointmaze-large-singletask", obs_keys=("state", "goal")))
    assert make_env("ogbench/cube-single").unwrapped.obs_shapes == {"state": (28,), "goal": (3,)}
    env = make_env("ogbench/cube-double")
    with pytest.raises(
        DsrlError, match=r"no scripted expert for 'ogbench/cube-double'; .* cube-single-\.\.\. have one"
    ):
        make_expert(env.unwrapped.env_spec, env)


def test_the_operator_of_the_cube_succeeds_unless_he_sees_it_displaced(tmp_path):
    def played(name, **more):
        return read_hdf5(collect(CollectConfig("ogbench/cube-single-singletask", tmp_path / name, 3, **more))).episodes

    first, again = (played(name, max_episode_steps=80) for name in ("a", "b"))
    assert all(episode.success for episode in first)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
    displaced = played("c", max_episode_steps=80, p_calibrated=0.0)
    assert not any(episode.success for episode in displaced) and {len(episode) for episode in displaced} == {80}
