"""Recorded experience survives the file, and windows of it are aligned."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from dsrl.data import Trajectories, Trajectory, bc_windows, read_hdf5, write_hdf5
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError

SHAPES = {"robot0_eef_pos": (3,), "object": (2,)}  # not alphabetical on purpose
SPEC = EnvSpec("robosuite", "Lift", {"horizon": 80}, {"physics_timestep": 0.005}, tuple(SHAPES), 80, "1.5.2")


def make_episode(steps, first=0.0):
    time = first + np.arange(steps + 1, dtype=np.float32)
    obs = {"robot0_eef_pos": np.stack([time] * 3, 1), "object": -np.stack([time] * 2, 1)}
    return Trajectory(
        obs={key: value[:-1] for key, value in obs.items()},
        next_obs={key: value[1:] for key, value in obs.items()},
        actions=np.stack([time[:-1]] * 4, 1),
        rewards=np.arange(steps) == steps - 1,
        terminated=np.arange(steps) == steps - 1,
        success=steps % 2 == 0,
    )


@pytest.fixture
def data():
    return Trajectories(tuple(make_episode(3 + i, 100.0 * i) for i in range(12)), SHAPES, SPEC)


@pytest.fixture
def path(tmp_path, data):
    write_hdf5(tmp_path / "lift.hdf5", data)
    return tmp_path / "lift.hdf5"


def test_a_data_set_survives_the_file(data, path):
    back = read_hdf5(path)
    assert back.obs_shapes == data.obs_shapes and list(back.obs_shapes) == list(SHAPES)
    assert back.env == SPEC
    assert len(back) == len(data) and back.n_steps == data.n_steps
    for ours, theirs in zip(data.episodes, back.episodes, strict=True):  # demo_10 comes after demo_9
        for key in SHAPES:
            np.testing.assert_array_equal(ours.obs[key], theirs.obs[key])
            np.testing.assert_array_equal(ours.next_obs[key], theirs.next_obs[key])
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        np.testing.assert_array_equal(ours.terminated, theirs.terminated)
        assert ours.success == theirs.success
    assert not list(path.parent.glob(".*"))


def test_starts_survive_the_file_and_may_be_missing(tmp_path, data):
    first, second, third = (make_episode(3) for _ in range(3))
    first, second = replace(first, seed=2**31 - 2), replace(second, initial_state=np.arange(5.0) / 3)
    write_hdf5(tmp_path / "starts.hdf5", replace(data, episodes=(first, second, third)))
    back = read_hdf5(tmp_path / "starts.hdf5").episodes
    assert [episode.seed for episode in back] == [2**31 - 2, None, None]
    np.testing.assert_array_equal(back[1].initial_state, second.initial_state)
    assert back[0].initial_state is None and back[2].initial_state is None
    with h5py.File(tmp_path / "starts.hdf5", "a") as file:
        file["data/demo_2/states"] = np.arange(12.0).reshape(3, 4)  # robomimic's
    assert read_hdf5(tmp_path / "starts.hdf5").episodes[2].initial_state.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("part", ["rewards", "dones"])
def test_what_does_not_match_the_steps_is_refused(path, part):
    with h5py.File(path, "a") as file:
        del file[f"data/demo_1/{part}"]
        file[f"data/demo_1/{part}"] = np.zeros(2)
    with pytest.raises(DsrlError, match=rf"demo_1/{part} has shape \[2\], its actions have 4 steps"):
        read_hdf5(path)


def test_the_file_has_robomimics_layout(data, path):
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == data.n_steps
        assert '"env_name": "Lift"' in file["data"].attrs["env_args"]
        assert file["data/demo_3"].attrs["num_samples"] == 6
        assert set(file["data/demo_3"]) == {"obs", "next_obs", "actions", "rewards", "dones"}
        train, valid = (set(file[f"mask/{name}"][()]) for name in ("train", "valid"))
        assert len(valid) == 1 and len(train | valid) == 12 and not train & valid


def test_the_split_follows_the_mask(path):
    back = read_hdf5(path)
    train, valid = back.split(0.5, seed=3)
    assert len(valid) == 1 and valid.episodes[0] is back.episodes[back.valid[0]]
    assert len(train) == 11


def test_the_split_is_seeded_and_by_episode(data):
    draws = (data.split(0.25, seed=seed)[1].episodes for seed in (1, 1, 2))
    first, again, other = ([len(episode) for episode in draw] for draw in draws)  # every length is another
    assert len(first) == 3 and first == again and first != other
    assert len(data.split(0.0)[1]) == 0


def test_windows_repeat_the_edges_and_never_cross_episodes(data):
    obs, chunks = bc_windows(data, n_obs_steps=2, horizon=4, action_start=1)
    assert obs.shape == (data.n_steps, 2, 5) and chunks.shape == (data.n_steps, 4, 4)
    assert obs.dtype == chunks.dtype == np.float32
    # the first episode has the times 0, 1, 2
    assert obs[:3, :, 0].tolist() == [[0, 0], [0, 1], [1, 2]]
    assert chunks[:3, :, 0].tolist() == [[0, 0, 1, 2], [0, 1, 2, 2], [1, 2, 2, 2]]
    assert obs[3, :, 0].tolist() == [100, 100]
    assert obs[2, 1].tolist() == [2, 2, 2, -2, -2]


def test_a_missing_next_obs_is_rebuilt_by_shifting(path):
    with h5py.File(path, "a") as file:
        del file["data/demo_0/next_obs"]
    assert read_hdf5(path).episodes[0].next_obs["object"][:, 0].tolist() == [-1, -2, -2]


def test_a_foreign_file_is_read_in_sorted_order_without_images(path):
    with h5py.File(path, "a") as file:
        del file["data"].attrs["obs_keys"]
        file["data"].attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
        for name in file["data"]:
            steps = file[f"data/{name}"].attrs["num_samples"]
            file[f"data/{name}/obs/agentview_image"] = np.zeros((steps, 2, 2, 3), np.uint8)
    back = read_hdf5(path)
    assert list(back.obs_shapes) == ["object", "robot0_eef_pos"]
    assert back.env.obs_keys == ("object", "robot0_eef_pos")


def test_a_missing_file_names_its_neighbour(path):
    with pytest.raises(DsrlError, match=r"no data set .*Did you mean 'lift.hdf5'"):
        read_hdf5(path.parent / "lft.hdf5")


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all" * 100])
def test_another_format_is_refused(tmp_path, content):
    (tmp_path / "x.hdf5").write_bytes(content)
    with pytest.raises(DsrlError, match="not a readable HDF5"):
        read_hdf5(tmp_path / "x.hdf5")


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DsrlError, match="truncated"):
        read_hdf5(path)


def _delete(name):
    return lambda file: file.__delitem__(name)


def _poison(name):
    def spoil(file):
        file[name][1] = np.nan

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_delete("data"), r"no group 'data' \(found: \['mask'\]"),
        (_delete("data/demo_4/actions"), r"demo_4 has no 'actions' \(found: .*'dones'.*needed"),
        (_delete("data/demo_4/obs"), "demo_4 has no 'obs'"),
        (_delete("data/demo_4/obs/object"), "demo_4 has no 'obs/object'"),
        (_delete("data/demo_0/obs/object"), r"demo_0 lacks .*\['object'\]"),
        (_poison("data/demo_7/actions"), "demo_7/actions holds NaN"),
        (_poison("data/demo_7/obs/object"), "demo_7/obs/object holds NaN"),
    ],
)
def test_what_is_wrong_is_named(path, spoil, message):
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(DsrlError, match=message):
        read_hdf5(path)


def test_an_empty_data_set_is_not_written(tmp_path):
    with pytest.raises(DsrlError, match="no episodes"):
        write_hdf5(tmp_path / "x.hdf5", Trajectories((), SHAPES))
    assert not list(tmp_path.iterdir())
