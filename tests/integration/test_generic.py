"""Any gymnasium id behind the same face."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.wrappers.make import make_env, resolve_env_spec

pytestmark = [pytest.mark.integration]


class Dictionary(gymnasium.Env):
    """Observes an image and two vectors; says ``is_success``."""

    observation_space = spaces.Dict(
        {
            "velocity": spaces.Box(-1, 1, (2,)),
            "image": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "pose": spaces.Box(-1, 1, (3,)),
        }
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        return self._observe(), 0.0, False, False, {"is_success": np.float64(1.0)}

    def _observe(self):
        return {"velocity": np.full(2, 2.0), "image": np.zeros((8, 8, 3), np.uint8), "pose": np.full(3, 3.0)}


@pytest.fixture
def dictionary():
    gymnasium.register("dsrl-test/Dictionary-v0", Dictionary, max_episode_steps=5)
    yield EnvSpec("gymnasium", "dsrl-test/Dictionary-v0")
    del gymnasium.registry["dsrl-test/Dictionary-v0"]


def test_dictionaries_are_flattened_by_sorted_low_dimensional_keys(dictionary):
    env = make_env(dictionary, reward="success")
    assert env.unwrapped.obs_shapes == {"pose": (3,), "velocity": (2,)}
    np.testing.assert_array_equal(env.reset(seed=0)[0], [3, 3, 3, 2, 2])
    assert env.step(np.zeros(2, np.float32))[1:3] == (1.0, True)
    env = make_env(replace(dictionary, obs_keys=("velocity",)))
    assert env.unwrapped.obs_shapes == {"velocity": (2,)}
    with pytest.raises(DsrlError, match=r"has no observation 'posee'\. Did you mean 'pose'"):
        make_env(replace(dictionary, obs_keys=("posee",)))


@pytest.mark.parametrize(("asked", "limit"), [(None, 5), (3, 3)])
def test_the_time_limit_is_its_own_unless_asked(dictionary, asked, limit):
    env = make_env(replace(dictionary, max_episode_steps=asked))
    env.reset(seed=0)
    assert [env.step(np.zeros(2, np.float32))[3] for _ in range(limit)] == [False] * (limit - 1) + [True]
    assert env.unwrapped.env_spec.max_episode_steps == limit


def test_seeds_reach_the_environment():
    first, second = make_env("Pendulum-v1"), make_env("Pendulum-v1")
    assert np.array_equal(first.reset(seed=3)[0], second.reset(seed=3)[0])
    assert not np.array_equal(first.reset()[0], first.reset(seed=3)[0])
    assert first.unwrapped.obs_shapes == {"state": (3,)}


def test_discrete_actions_are_refused():
    with pytest.raises(DsrlError, match="only a flat Box"):
        make_env("CartPole-v1")


def test_a_sparse_reward_without_success_is_refused():
    env = make_env("Pendulum-v1", reward="success")
    env.reset(seed=0)
    with pytest.raises(DsrlError, match="Pendulum-v1 reports no success"):
        env.step(np.zeros(1, np.float32))


def test_unknown_names_name_the_nearest():
    with pytest.raises(DsrlError, match="Did you mean 'Pendulum-v1'"):
        resolve_env_spec("Pendulumm-v1")
    with pytest.raises(DsrlError, match="Did you mean 'step-cost'"):
        make_env("Pendulum-v1", reward="stepcost")
