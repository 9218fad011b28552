"""Demonstrations, from the script to the file."""

from dataclasses import replace

import numpy as np
import pytest

from dsrl.collect import CollectConfig, collect
from dsrl.data import read_hdf5
from dsrl.errors import DsrlError

pytestmark = [pytest.mark.integration]


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("robosuite")
    return CollectConfig("robosuite/Lift", tmp_path / "lift.hdf5", episodes=4, p_calibrated=0.5, physics_timestep=0.005)


@pytest.mark.robosuite
def test_collect_writes_what_was_played(config):
    data = read_hdf5(collect(config))
    assert len(data) == 4 and sum(episode.success for episode in data.episodes) == 2
    assert data.env.id == "robosuite/Lift" and data.env.options["physics_timestep"] == 0.005
    assert list(data.obs_shapes) == ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    for episode in data.episodes:
        assert np.abs(episode.actions).max() <= 1.0
        for key in data.obs_shapes:
            np.testing.assert_array_equal(episode.obs[key][1:], episode.next_obs[key][:-1])
        if episode.success:
            first = int(np.argmax(episode.terminated))
            assert len(episode) == first + 1 + config.steps_after_success
            assert episode.rewards[first] == 1.0 and not episode.rewards[:first].any()
        else:
            assert len(episode) == 80 and not episode.rewards.any() and not episode.terminated.any()


@pytest.mark.robosuite
def test_the_same_config_collects_the_same_data(config):
    config = replace(config, episodes=2)
    first = read_hdf5(collect(config))
    second = read_hdf5(collect(replace(config, out=config.out.with_name("again.hdf5"))))
    for one, other in zip(first.episodes, second.episodes, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        np.testing.assert_array_equal(one.next_obs["object"], other.next_obs["object"])


@pytest.mark.robosuite
def test_failures_can_be_left_out(config):
    data = read_hdf5(collect(replace(config, episodes=2, keep_failures=False)))
    assert [episode.success for episode in data.episodes] == [True]
    with pytest.raises(DsrlError, match="none of 1 episodes"):
        collect(replace(config, episodes=1, p_calibrated=0.0, keep_failures=False, overwrite=True))


@pytest.mark.metaworld
def test_collect_on_metaworld(tmp_path):
    pytest.importorskip("metaworld")
    data = read_hdf5(collect(CollectConfig("metaworld/pick-place-v3", tmp_path / "pick.hdf5", episodes=2)))
    assert [episode.success for episode in data.episodes] == [True, True]
    assert dict(data.obs_shapes) == {"state": (39,)}


def test_an_existing_file_is_not_replaced(tmp_path):
    out = tmp_path / "there.hdf5"
    out.write_bytes(b"dear")
    with pytest.raises(DsrlError, match="--overwrite"):
        collect(CollectConfig("robosuite/Lift", out))
    assert out.read_bytes() == b"dear"


def test_an_environment_without_an_expert_is_refused(tmp_path):
    with pytest.raises(DsrlError, match="no scripted expert"):
        collect(CollectConfig("Pendulum-v1", tmp_path / "x.hdf5"))
