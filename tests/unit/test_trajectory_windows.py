"""Windows of episodes, and how they look to a network."""

import numpy as np
import pytest
import torch

from dsrl.data import Trajectories, Trajectory, read_hdf5, write_hdf5
from dsrl.errors import DsrlError
from dsrl.trajectory_windows import Layout, WindowCodec, Windows, cut_windows, sparse_values, to_trajectories


def episode(number, steps, terminates=False, early=None):
    """Observation ``t`` of episode ``number`` is ``100 * number + t``, action and reward are ``t`` and ``t / 10``."""
    time = np.arange(steps + 1)
    ends = np.zeros(steps, bool)
    ends[-1] = terminates
    if early is not None:
        ends[early] = True
    obs = (100.0 * number + time)[:, None].astype(np.float32)
    actions = np.stack([np.sin(time[:-1]), 2 * np.cos(time[:-1])], axis=1).astype(np.float32)
    return Trajectory({"a": obs[:-1]}, {"a": obs[1:]}, actions, (time[:-1] / 10).astype(np.float32), ends)


def data(*episodes):
    return Trajectories(tuple(episodes), {"a": (1,)})


@pytest.mark.parametrize("stride", [1, 3])
def test_no_window_crosses_a_reset_or_ends_in_a_time_out_and_terminals_are_kept(stride):
    cut, ended, restarted = episode(1, 9), episode(2, 11, terminates=True), episode(3, 10, early=6)
    windows = cut_windows(data(cut, ended, restarted, episode(4, 3)), 4, stride)
    obs = windows.obs[..., 0].numpy()
    assert (np.diff(obs, axis=1) == 1).all(), "a window holds consecutive observations of one episode"
    np.testing.assert_allclose(windows.reward.numpy(), obs[:, :-1] % 100 / 10, rtol=1e-6)
    last = obs[:, -1]  # the observation behind the last action
    assert last[last < 200].max() == (108 if stride == 1 else 107), (
        "the last env step of an episode that was cut off stands in no window"
    )
    assert (last == 211).sum() == 1 and (last == 307).sum() == 1, "each termination ends one window"
    assert last.max() == 307, "nothing comes after a termination, and a short episode has no window"
    ends = windows.terminated.numpy()
    assert not ends[:, :-1].any() and (ends[:, -1] == np.isin(last, (211, 307))).all()
    if stride == 1:
        assert len(obs) == (9 - 1 - 4 + 1) + (11 - 4 + 1) + (7 - 4 + 1)
        more = cut_windows(data(cut, ended, restarted), 4, ending_repeats=8)
        assert len(more.obs) == len(obs) + 14 and int(more.terminated.any(dim=1).sum()) == 16


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(DsrlError, match="no window of 12 env steps: its longest episode has 11"):
        cut_windows(data(episode(1, 12), episode(2, 4)), 12)
    broken = episode(1, 9)
    broken.rewards[2] = np.nan
    with pytest.raises(DsrlError, match="NaN or infinite values in its rewards"):
        cut_windows(data(broken), 4, source="x.hdf5")


def codec_of(windows, reward_values=None):
    layout = Layout(1, 2, windows.action.shape[1], reward_values)
    codec = WindowCodec(layout, torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))
    codec.fit(windows)
    return codec


def test_every_channel_is_standardised_and_comes_back():
    windows = cut_windows(data(episode(1, 30, terminates=True), episode(2, 20, terminates=True)), 5)
    codec = codec_of(windows)
    x = codec.encode(windows)
    assert x.shape == (len(windows.obs), 6, 5)
    rows = x[:, :-1].flatten(0, 1)
    torch.testing.assert_close(rows[:, 1:].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[:, 1:-1].std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert float(rows[:, -1].max() - rows[:, -1].min()) == pytest.approx(2), "rare terminations do not lie far out"
    torch.testing.assert_close(x[..., 0].std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert not x[:, -1, 1:].any(), "there is no action, reward or end behind the last one"
    back = codec.decode(x)
    for name in ("obs", "reward"):
        torch.testing.assert_close(getattr(back, name), getattr(windows, name), atol=1e-4, rtol=1e-5)
    assert torch.equal(back.terminated, windows.terminated)
    limits = torch.tensor([1.0, 2.0])
    # arctanh of an action at its limit would be infinite: .999 of it comes back
    torch.testing.assert_close(back.action, windows.action.clamp(-0.999 * limits, 0.999 * limits), atol=1e-5, rtol=0)


def test_sparse_rewards_are_snapped_to_the_values_of_the_data():
    windows = cut_windows(data(episode(1, 12)), 4)
    sparse = windows._replace(reward=(windows.reward > 0.55).float())
    codec = codec_of(sparse, (0.0, 1.0))
    x = codec.encode(sparse) + 0.3
    assert torch.equal(codec.decode(x).reward, sparse.reward)
    one = episode(1, 6)
    assert sparse_values(data(one)) is None
    one.rewards[:] = [0, 0, 1, 0, 1, 1]
    assert sparse_values(data(one)) == (0.0, 1.0)


def test_the_slope_of_the_actions_is_their_derivative():
    windows = cut_windows(data(episode(1, 20)), 4)
    codec = codec_of(windows)
    x = torch.randn(3, 5, 5, requires_grad=True)
    codec.actions(x).sum().backward()
    expected = torch.zeros_like(x)
    expected[:, :-1, 1:3] = codec.action_slope(x.detach())
    torch.testing.assert_close(x.grad, expected)


def test_windows_become_episodes_that_end_at_their_first_termination(tmp_path):
    windows = cut_windows(data(episode(1, 20)), 4)
    ends = torch.zeros_like(windows.terminated)
    ends[0, 1:] = True
    ends[1, 3] = True
    made = to_trajectories(windows._replace(terminated=ends), data(episode(1, 20)))
    assert [len(e) for e in made.episodes[:3]] == [2, 4, 4]
    assert [bool(e.terminated[-1]) for e in made.episodes[:3]] == [True, True, False]
    write_hdf5(tmp_path / "made.hdf5", made)
    read = read_hdf5(tmp_path / "made.hdf5").episodes
    np.testing.assert_array_equal(read[0].next_obs["a"][:, 0], [101, 102])
    np.testing.assert_array_equal(read[2].next_obs["a"][:, 0], read[2].obs["a"][:, 0] + 1)
    np.testing.assert_allclose(read[1].actions, windows.action[1], rtol=1e-6)
    assert isinstance(windows, Windows)
