"""A policy is given the observations that it names, in its order."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.wrappers import make_vec_env, resolve_env_spec

DESK = "test/Desk-v0"


class Desk(gym.Env):
    """Three named observations, whose values tell them apart."""

    observation_space = spaces.Dict(
        {
            "agent_pos": spaces.Box(-9, 9, (2,), np.float32),
            "environment_state": spaces.Box(-9, 9, (1,), np.float32),
            "force": spaces.Box(-9, 9, (1,), np.float32),
        }
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"agent_pos": [1, 2], "environment_state": [3], "force": [4]}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture(autouse=True)
def desk():
    gym.register(DESK, Desk, max_episode_steps=4)
    yield
    gym.registry.pop(DESK)


def first_obs(env, **sizes):
    return make_vec_env(env, PolicySpec({key: (n,) for key, n in sizes.items()}, 1, 4, 4)).reset()[0, 0].tolist()


def test_observations_come_by_the_names_of_the_policy():
    assert first_obs(DESK, force=1, agent_pos=2) == [4, 1, 2]
    assert first_obs(DESK, agent_pos=2, force=1) == [1, 2, 4]


def test_lerobots_names_are_understood():
    assert first_obs(DESK, **{"observation.environment_state": 1, "observation.state": 2}) == [3, 1, 2]


def test_a_policy_without_names_reads_the_whole():
    assert first_obs(DESK, state=4) == [1, 2, 3, 4]


def test_an_environment_without_names_gives_the_whole():
    cos, sin, _ = first_obs("Pendulum-v1", cos=1, sin=1, velocity=1)
    assert cos**2 + sin**2 == pytest.approx(1)


def test_a_spec_of_the_users_says_what_the_policy_reads():
    spec = EnvSpec("gymnasium", DESK, obs_keys=("force", "agent_pos"))
    assert first_obs(spec, gripper=1, arm=2) == [4, 1, 2]


def test_another_order_is_refused():
    spec = EnvSpec("gymnasium", DESK, obs_keys=("force", "agent_pos"))
    with pytest.raises(DsrlError, match=r"reads \['agent_pos', 'force'\].*as \['force', 'agent_pos'\]"):
        first_obs(spec, agent_pos=2, force=1)


def test_a_missing_observation_is_named_with_both_lists():
    with pytest.raises(DsrlError) as error:
        first_obs(DESK, agent_poss=2, force=1)
    assert str(error.value) == (
        "test/Desk-v0 has no observation 'agent_poss'. Did you mean 'agent_pos'? "
        "It has agent_pos, environment_state, force; wanted are agent_poss, force"
    )


def test_another_size_is_named():
    with pytest.raises(DsrlError, match=r"reads 'force' with the shape \[2\], test/Desk-v0 gives \[1\]"):
        first_obs(DESK, force=2, agent_pos=2)


def test_the_resolved_spec_records_the_order():
    policy = PolicySpec({"force": (1,), "agent_pos": (2,)}, 1, 4, 4)
    spec = resolve_env_spec(DESK, policy)
    assert spec.obs_keys == ("force", "agent_pos")
    assert resolve_env_spec(EnvSpec.from_robomimic(spec.to_robomimic()), policy) == spec
