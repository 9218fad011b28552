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
from dsrl.labelled import ChunkCritic, Support, label_recorded, label_samples, support
from dsrl.labels import Quantile, Threshold
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
