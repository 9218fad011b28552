"""Meta-World environments: exact seeds above all."""

import numpy as np
import pytest

pytest.importorskip("metaworld")

from dsrl.errors import DsrlError
from dsrl.wrappers.experts import make_expert
from dsrl.wrappers.make import make_env, resolve_env_spec

pytestmark = [pytest.mark.integration, pytest.mark.metaworld]


def rollout(env, seed):
    obs, _ = env.reset(seed=seed)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 4)).astype(np.float32)
    return np.stack([obs, *(env.unwrapped.step(action)[0] for action in actions)])


@pytest.fixture(scope="module")
def env():
    env = make_env("metaworld/pick-place-v3")
    yield env
    env.close()


@pytest.mark.parametrize("task", ["pick-place-v3", "peg-insert-side-v3"])
def test_copies_and_repeats_play_the_same_episode(task):
    first, second = make_env(f"metaworld/{task}"), make_env(f"metaworld/{task}")
    once = rollout(first, seed=7)
    rollout(first, seed=8)
    assert np.array_equal(rollout(first, seed=7), once)
    second.reset(seed=1)
    assert np.array_equal(rollout(second, seed=7), once)


def test_every_seed_is_its_own_start(env):
    assert len({env.reset(seed=seed)[0].tobytes() for seed in range(50)}) == 50


def test_resets_without_a_seed_never_repeat(env):
    other = make_env("metaworld/pick-place-v3")
    env.reset(seed=0), other.reset(seed=1)
    starts = [copy.reset()[0].tobytes() for copy in (env, other) for _ in range(10)]
    assert len(set(starts)) == 20


def test_spaces_and_the_visible_goal(env):
    obs, info = env.reset(seed=0)
    assert obs.shape == (39,) and obs.dtype == np.float32 and env.action_space.shape == (4,)
    assert env.unwrapped.obs_shapes == {"state": (39,)}
    assert info["success"] is False
    assert np.abs(obs[-3:]).max() > 0


def test_the_time_limit_is_a_truncation_beyond_the_simulators_own():
    from dataclasses import replace

    env = make_env(replace(resolve_env_spec("metaworld/reach-v3"), max_episode_steps=505), reward="step-cost")
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(505)]
    assert ends[-1] == (False, True) and not any(truncated for _, truncated in ends[:-1])


def play_expert(env, offset, seed):
    expert = make_expert(env.unwrapped.env_spec, env)
    env.reset(seed=seed)
    expert.reset(np.random.default_rng(0), np.array(offset))
    while True:
        _, reward, terminated, truncated, info = env.step(expert.act(env))
        if terminated or truncated:
            return reward, terminated, info["success"]


def test_the_expert_solves_what_the_displaced_one_does_not(env):
    assert [play_expert(env, (0.0, 0.0, 0.0), seed) for seed in range(5)] == [(1.0, True, True)] * 5
    assert [play_expert(env, (0.05, 0.0, 0.0), seed) for seed in range(5)] == [(0.0, False, False)] * 5


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'pick-place-v3'"):
        resolve_env_spec("metaworld/pickplace-v3")


def test_a_rendering_copy_plays_the_same_episode():
    env, silent = make_env("metaworld/pick-place-v3", render_mode="rgb_array"), make_env("metaworld/pick-place-v3")
    try:
        played = rollout(env, seed=7)
        frame = env.render()
    except (RuntimeError, ImportError, AttributeError) as error:
        pytest.skip(f"no OpenGL here: {error}")
    finally:
        env.close()
    assert np.array_equal(played, rollout(silent, seed=7))
    assert frame.dtype == np.uint8 and frame.shape[2] == 3 and frame.std() > 0
