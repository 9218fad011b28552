"""Demonstrations of real simulators, played back."""

from dataclasses import replace
from io import StringIO

import h5py
import numpy as np
import pytest
import torch
from rich.console import Console

from dsrl.collect import CollectConfig, collect
from dsrl.data import read_hdf5
from dsrl.demos import decisions, read_demos, replay_check
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.wrappers import make_chunk_env, make_env

pytestmark = [pytest.mark.integration]


class Transparent:
    """A policy whose encoding is the history, and that is never asked to act."""

    spec = PolicySpec({"state": (39,)}, action_dim=4, horizon=7, n_action_steps=5, n_obs_steps=2, action_start=1)
    device, cond_dim = torch.device("cpu"), 78

    def encode(self, obs):
        return obs.flatten(1)


def check(data, env):
    out = StringIO()
    replay_check(data, env, console=Console(file=out, width=300))
    return out.getvalue()


@pytest.mark.metaworld
def test_metaworld_demonstrations_succeed_again_unless_they_are_spoilt(tmp_path):
    pytest.importorskip("metaworld")
    data = read_hdf5(collect(CollectConfig("metaworld/pick-place-v3", tmp_path / "pick.hdf5", episodes=3)))
    assert len({episode.seed for episode in data.episodes}) == 3
    assert "3 of 3 demonstrations succeed when played back in metaworld/pick-place-v3" in check(data, data.env)
    negated = tuple(replace(episode, actions=-episode.actions) for episode in data.episodes)
    with pytest.raises(DsrlError, match=r"0 of 3 demonstrations .* at least 2 must; they start where they should"):
        check(replace(data, episodes=negated), data.env)


@pytest.mark.metaworld
def test_cut_demonstrations_are_what_the_chunked_simulator_returns(tmp_path):
    pytest.importorskip("metaworld")
    policy = Transparent()
    path = collect(CollectConfig("metaworld/pick-place-v3", tmp_path / "pick.hdf5", episodes=2, seed=1))
    data = read_demos(path, policy, EnvSpec.parse("metaworld/pick-place-v3"))
    cut = decisions(data, policy, 0.9, "auto")
    env = make_chunk_env(data.env, policy.spec, gamma=0.9)
    for episode in data.episodes:
        obs, terminated = env.reset(seed=episode.seed)[0], False
        while not terminated:
            decision = cut.pop(0)
            np.testing.assert_allclose(decision["obs"][0], obs.ravel(), atol=1e-6)
            obs, reward, terminated, _, info = env.step(decision["chunk"].reshape(policy.spec.n_action_steps, -1))
            np.testing.assert_allclose(decision["next_obs"][0], obs.ravel(), atol=1e-6)
            assert decision["reward"][0] == pytest.approx(reward) and decision["length"][0] == info["chunk_length"]
            assert decision["ended"][0] == decision["terminated"][0] == terminated
    assert not cut
    env.close()


@pytest.mark.robosuite
def test_robosuite_demonstrations_start_from_a_seed_or_from_a_state(tmp_path):
    pytest.importorskip("robosuite")
    path = collect(CollectConfig("robosuite/Lift", tmp_path / "lift.hdf5", episodes=2, physics_timestep=0.005))
    data = read_hdf5(path)
    assert "2 of 2" in check(data, data.env)
    env = make_env(data.env)
    with h5py.File(path, "a") as file:  # as robomimic writes it
        for i, episode in enumerate(data.episodes):
            env.reset(seed=episode.seed)
            state = env.unwrapped.simulator.sim.get_state().flatten()
            del file[f"data/demo_{i}"].attrs["seed"]
            file[f"data/demo_{i}/states"] = np.stack([state] * len(episode))
    foreign = read_hdf5(path)
    assert [episode.seed for episode in foreign.episodes] == [None, None]
    env.reset(seed=7)
    first = foreign.episodes[0]
    there = env.unwrapped.restore(first.initial_state)
    np.testing.assert_allclose(there, np.concatenate([first.obs[key][0] for key in data.obs_shapes]), atol=1e-5)
    for action, *after in zip(first.actions, *(first.next_obs[key] for key in data.obs_shapes), strict=True):
        np.testing.assert_allclose(env.step(action)[0], np.concatenate(after), atol=1e-4)  # controllers restored too
    assert "2 of 2" in check(foreign, data.env)
    with pytest.raises(DsrlError, match="another robot, other objects or another version"):
        env.unwrapped.restore(first.initial_state[:-1])
    env.close()
    with pytest.raises(DsrlError, match=r"physics_timestep \(0.005 there, 0.002 here\)"):
        elsewhere = replace(data.env, options={"physics_timestep": 0.002})
        check(replace(data, episodes=tuple(replace(e, actions=-e.actions) for e in data.episodes)), elsewhere)
