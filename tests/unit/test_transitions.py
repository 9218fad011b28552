"""Recorded episodes become decisions that stop, discount and bootstrap where they should."""

import numpy as np
import pytest
import torch

from dsrl.data import Trajectories, Trajectory, bc_windows
from dsrl.errors import DsrlError
from dsrl.policy import PolicySpec
from dsrl.transitions import cut_transitions

GAMMA = 0.5


class Reader:
    """Encodes by flattening."""

    def __init__(self, n_action_steps=1, n_obs_steps=1, keys=("at",)):
        self.spec = PolicySpec({key: (1,) for key in keys}, 2, n_action_steps, n_action_steps, n_obs_steps)
        self.device, self.cond_dim = torch.device("cpu"), n_obs_steps * len(keys)

    def encode(self, obs):
        return obs.flatten(1)


def make_episode(rewards, terminated=(), start=0):
    """The observation counts env steps from ``start``; the action is twice that and its negative."""
    steps = len(rewards)
    at = start + np.arange(steps + 1, dtype=np.float32)[:, None]
    ended = np.zeros(steps, bool)
    ended[list(terminated)] = True
    actions = np.concatenate([2 * at[:-1], -2 * at[:-1]], axis=1)
    return Trajectory({"at": at[:-1]}, {"at": at[1:]}, actions, np.asarray(rewards, np.float32), ended)


def make_data(*episodes):
    return Trajectories(episodes, {"at": (1,)})


def test_every_row_of_two_episodes_by_hand():
    """Chunks of two: the first episode terminates, the second is cut off by a time limit."""
    data = make_data(make_episode([1, 2, 4], terminated=[2]), make_episode([8, 16, 32], start=10))
    cut = cut_transitions(data, Reader(n_action_steps=2), GAMMA)
    assert len(cut) == 6
    assert cut.cond.flatten().tolist() == [0, 1, 2, 10, 11, 12]
    assert cut.next_cond.flatten().tolist() == [2, 3, 3, 12, 13, 13]
    assert cut.chunk[:3].tolist() == [[0, 0, 2, -2], [2, -2, 4, -4], [4, -4, 4, -4]]
    assert cut.reward.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16 + 0.5 * 32, 32]
    assert cut.discount.tolist() == [0.25, 0.25, 0.5] * 2
    assert cut.terminated.tolist() == [False, True, True, False, False, False]
    assert cut.earned.tolist() == [3, 4, 4, 24, 32, 32]
    assert cut.remaining.tolist() == [0, 0, 0, 0.125, 0.25, 0.5]
    assert cut.last.tolist() == [2, 2, 2, 5, 5, 5]
    assert cut.next_cond[cut.last].flatten().tolist() == [3] * 3 + [13] * 3


def test_a_chunk_stops_at_the_first_termination_although_the_recording_goes_on():
    """`dsrl collect` keeps some steps after a success, all of them marked as terminated."""
    cut = cut_transitions(make_data(make_episode([0, 1, 1, 1], terminated=[1, 2, 3])), Reader(3), GAMMA)
    assert cut.terminated.all() and cut.remaining.eq(0).all()
    assert cut.earned.tolist() == cut.reward.tolist() == [0.5, 1, 1, 1]
    assert cut.discount.tolist() == [0.25, 0.5, 0.5, 0.5]
    assert cut.chunk[0].tolist() == [0, 0, 2, -2, 2, -2]
    assert cut.next_cond.flatten().tolist() == [2, 2, 3, 4]


def test_rows_are_those_of_the_windows_of_behaviour_cloning():
    data = make_data(make_episode([1] * 5), make_episode([1] * 3, start=10))
    cut = cut_transitions(data, Reader(n_action_steps=2, n_obs_steps=3), GAMMA)
    obs, chunks = bc_windows(data, 3, 2, 0)
    assert torch.equal(cut.cond, torch.from_numpy(obs).flatten(1))
    assert torch.equal(cut.chunk, torch.from_numpy(chunks).flatten(1))


def test_rows_can_be_picked():
    cut = cut_transitions(make_data(make_episode([1, 2, 4])), Reader(), GAMMA, "demo.hdf5")
    some = cut.at(torch.tensor([2, 0]))
    assert some.reward.tolist() == [4, 1] and len(some) == 2
    assert (some.gamma, some.source) == (GAMMA, "demo.hdf5")


@pytest.mark.parametrize(
    ("data", "reader", "gamma", "message"),
    [
        (
            make_data(make_episode([0, 0], terminated=[1])),
            Reader(),
            0.9,
            "demo.hdf5 has no rewards: all 2 of them are 0",
        ),
        (make_data(), Reader(), 0.9, "demo.hdf5 has no episodes"),
        (make_data(make_episode([1])), Reader(keys=("atx",)), 0.9, "no observation 'atx'.*Did you mean 'at'"),
        (make_data(make_episode([1])), Reader(), 1.1, "--gamma is 1.1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(data, reader, gamma, message):
    with pytest.raises(DsrlError, match=message):
        cut_transitions(data, reader, gamma, "demo.hdf5")


def test_another_robot_is_refused():
    episode = make_episode([1, 2])
    wide = Trajectory(episode.obs, episode.next_obs, np.zeros((2, 3)), episode.rewards, episode.terminated)
    with pytest.raises(DsrlError, match="actions of 3 numbers, the policy plays 2"):
        cut_transitions(make_data(wide), Reader(), GAMMA)
