"""Which chunks are learned from, and whether the base policy could have made them."""

import numpy as np
import pytest
import torch
from test_transitions import make_data, make_episode

from dsrl.critics import CriticEnsemble
from dsrl.data import bc_windows
from dsrl.diffusion import FlowConfig, FlowPolicy
from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError
from dsrl.folds import deal
from dsrl.labelled import ChunkCritic, Labelled, Rows, Support, label_recorded, label_samples, support
from dsrl.labels import LabelReport, Quantile, Threshold
from dsrl.policy import PolicySpec
from dsrl.values import ValuesConfig

SPEC = PolicySpec({"at": (1,)}, 2, horizon=3, n_action_steps=2, action_start=1, n_obs_steps=2)
VALUES = ValuesConfig(hidden_dims=(8,), steps=5, batch_size=8)


@pytest.fixture
def base():
    torch.manual_seed(0)
    policy = FlowPolicy(SPEC, FlowConfig({"type": "mlp", "hidden_dims": [16] * 3}, sampling_steps=3))
    return policy.freeze()


def tell(train, valid, base, reward="success", env="robosuite"):
    data = [make_data(*part) for part in (train, valid)]
    data = [type(each)(each.episodes, each.obs_shapes, EnvSpec(env, "Lift")) for each in data]
    settings = {"gamma": 0.9, "reward": reward, "source": "demos.hdf5"}
    return label_recorded(*data, base, Quantile(0.4), VALUES, **settings), data


def test_what_comes_after_the_end_has_no_label(base):
    """`dsrl collect` records some steps after the success; whole chunks reach into them, but none begins there."""
    success = make_episode([0, 0, 1, 1, 1], terminated=[2, 3, 4])
    failure = make_episode([0] * 6, start=20)
    found, (train, _) = tell([success, failure], [make_episode([0, 1], [1], start=40)], base)
    obs, chunk = bc_windows(train, SPEC.n_obs_steps, SPEC.horizon, SPEC.action_start)
    kept = [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert found.train.obs.flatten(1).tolist() == obs[kept].reshape(9, -1).tolist()
    np.testing.assert_array_equal(found.train.chunk.numpy(), chunk[kept])
    assert len(found.train.label) == 9 and len(found.valid.label) == 2
    assert found.valid.obs[1, -1].tolist() == [41.0]


def test_steps_that_cost_the_same_everywhere_are_no_reward(base):
    with pytest.raises(DsrlError, match=r"demos.hdf5 has no rewards: all 6 of them are 0"):
        tell([make_episode([0] * 4)], [make_episode([0] * 2)], base, reward="step-cost")


def test_an_episode_is_rated_by_values_that_have_not_seen_it(base):
    """Every other episode earns something: who has seen one knows that, who has seen its neighbours does not."""
    episodes = [make_episode([float(at % 2)], [0], start=at) for at in range(-3, 3)]
    values = ValuesConfig(hidden_dims=(64, 64), steps=1000, batch_size=32, lr=5e-3, tau=0.1)
    settings = {"gamma": 0.5, "reward": "dense", "source": "demos.hdf5"}
    found = {
        folds: label_recorded(make_data(*episodes), make_data(), base, Quantile(0.4), values, **settings, folds=folds)
        for folds in (1, 3)
    }
    assert found[1].report.auc > 0.95, "it remembers"
    assert found[3].report.auc < 0.7


def test_every_row_is_rated_in_its_place(base):
    """Where all episodes are alike, it does not matter which of them values were learned from."""
    data = make_data(*(make_episode([0.0, 0, 1, 0, 0, 0, 1], terminated=[6]) for _ in range(6)))
    values = ValuesConfig(hidden_dims=(64,), steps=800, batch_size=64, lr=5e-3, tau=0.1)
    settings = {"gamma": 0.9, "reward": "dense", "source": "demos.hdf5"}
    for train, valid in ((data, make_data()), (make_data(*data.episodes[:4]), make_data(*data.episodes[4:]))):
        by_folds = [
            label_recorded(train, valid, base, Threshold(), values, **settings, folds=folds) for folds in (1, 2, 3)
        ]
        first, *others = (torch.cat([found.train.advantage, found.valid.advantage]) for found in by_folds)
        for other in others:
            torch.testing.assert_close(other, first, atol=0.1, rtol=0)


def test_best_and_worst_episodes_are_dealt_in_turn():
    earned = [3.0, 0.0, 1.0, 0.0, 2.0, 0.0]
    fold = deal(make_data(*(make_episode([each]) for each in earned)), 2)
    assert fold.tolist() == [1, 0, 1, 1, 0, 0]


def test_fewer_episodes_than_folds_are_refused(base):
    with pytest.raises(DsrlError, match=r"demos.hdf5 has 2 episodes, fewer than --folds 3"):
        label_recorded(
            make_data(make_episode([0, 1.0])), make_data(make_episode([1.0])), base, Threshold(), VALUES,
            gamma=0.9, reward="dense", source="demos.hdf5", folds=3,
        )  # fmt: skip


def test_labels_that_have_nothing_to_do_with_success_are_noticed():
    rows = Rows(*(torch.zeros(0),) * 4)
    report = LabelReport(positive_rate=0.3, flip_rate=0.1, auc=0.9)
    assert Labelled(rows, rows, report).concerns() == Labelled(rows, rows, report, 0.9, 0.5, 0.2).concerns() == []
    (concern,) = Labelled(rows, rows, report, 0.9, 0.31, 0.3).concerns()
    assert concern.startswith("labels/in_successes is 31% and labels/in_failures 30%")
    assert "labels/in_failures" not in Labelled(rows, rows, report).metrics()


def test_samples_are_labelled_against_each_other(base):
    """At every observation the share of good samples is the same, and they are those of the highest rating."""
    torch.manual_seed(1)
    critic = ChunkCritic(CriticEnsemble(2, 4, (8,)).requires_grad_(False), torch.full((2,), -1.0), torch.ones(2))
    data = make_data(make_episode([0] * 9), make_episode([0] * 5))
    settings = {"candidates": 5, "states": 10, "seed": 0}
    found = label_samples(data, make_data(), base, Quantile(0.4), critic, **settings)
    assert found.train.label.view(10, 5).sum(1).tolist() == [2.0] * 10 and len(found.valid.label) == 0
    obs, chunk = found.train.obs, found.train.chunk
    assert (obs.view(10, 5, -1) == obs.view(10, 5, -1)[:, :1]).all()
    q = critic.q(base.encode(obs), chunk[:, 1:3].clamp(-1, 1).flatten(1)).amin(0).view(10, 5)
    for ratings, labels in zip(q, found.train.label.view(10, 5), strict=True):
        assert ratings[labels > 0].min() > ratings[labels == 0].max()
    assert "labels/auc" not in found.metrics(), "there is no return to compare with"
    above = label_samples(data, make_data(), base, Threshold(), critic, **settings).train.label.view(10, 5)
    assert torch.equal(above > 0, q >= q.mean(1, keepdim=True))
    good = found.train.good()
    assert len(good.label) == 20 and good.label.all()


def test_its_own_samples_are_no_strangers_to_a_policy(base):
    generator = torch.Generator().manual_seed(4)
    obs = torch.randn(500, 2, 1, generator=generator)
    own = base.sample(obs, torch.randn(500, 3, 2, generator=generator))
    near, far = support(base, obs, own, seed=1), support(base, obs, own + 3 * own.std(), seed=1)
    assert near.foreign_share < 0.12 and near.concern() is None
    assert far.foreign_share > 0.95 and far.distance > 1.5
    assert "data/foreign_share is" in far.concern() and "data/distance" in far.concern()


def test_a_deterministic_policy_is_not_accused_of_rounding():
    assert Support(distance=0.01, foreign_share=1.0, samples=16).concern() is None
