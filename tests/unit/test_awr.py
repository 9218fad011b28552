"""Advantage-weighted regression against what can be worked out by hand."""

import math

import pytest
import torch
from specimens import SPEC, inputs
from test_cfgrl import POINT, learn, make_base, make_gaussian, two_clusters

from dsrl.awr import GaussianConfig, GaussianPolicy, awr_loss, awr_weights, effective_share, few_count


def test_weights_are_exponential_and_capped():
    advantage = torch.tensor([-1.0, 0.0, 0.5, 2.0, 1e6])
    assert awr_weights(advantage, 3.0).tolist() == pytest.approx([math.exp(-3), 1, math.exp(1.5), 100, 100])
    assert awr_weights(advantage, 0.0).tolist() == [1] * 5
    assert awr_weights(advantage, 3.0, cap=2.0).max() == pytest.approx(2)


def test_the_effective_share_counts_rows_that_matter():
    assert effective_share(torch.full((8,), 3.0)) == 1.0
    assert effective_share(torch.tensor([5.0, 0, 0, 0])) == 0.25
    assert effective_share(torch.tensor([1.0, 2.0])) == pytest.approx(9 / 10)
    assert few_count(0.3) is None
    assert "lower --awr-temperature" in str(few_count(0.95)) and "raise --awr-temperature" in str(few_count(0.01))


@pytest.mark.parametrize("kind", ["flow", "diffusion", "gaussian"])
def test_a_weighted_loss_is_the_weighted_mean_of_the_losses_of_the_rows(kind):
    policy = make_gaussian() if kind == "gaussian" else make_base(kind)
    obs, _ = inputs(policy.spec)
    chunk = 0.5 + 2 * torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(2))

    def loss(weight=None):
        return policy.loss(obs, chunk, torch.Generator().manual_seed(3), weight=weight)

    torch.testing.assert_close(loss(torch.ones(8)), loss())
    rows = torch.stack([loss(row) for row in torch.eye(8)])
    torch.testing.assert_close(rows.sum(), loss())
    weight = torch.tensor([0.0, 1, 2, 3, 0, 1, 0.5, 100])
    torch.testing.assert_close(loss(weight), rows @ weight)
    torch.testing.assert_close(awr_loss(policy, obs, chunk, weight, torch.Generator().manual_seed(3)), rows @ weight)
    assert rows.std() > 1e-4


def test_the_gaussian_loss_is_the_likelihood():
    policy, (obs, _) = make_gaussian(), inputs(SPEC)
    chunk = 0.5 + 2 * torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(2))
    mean, log_std = policy.denoiser.moments(policy.encode(obs))
    normal = torch.distributions.Normal(mean, log_std.exp().expand_as(mean))
    likelihood = normal.log_prob(policy.action_normalizer.normalize(chunk)).mean()
    torch.testing.assert_close(policy.loss(obs, chunk), -likelihood - 0.5 * math.log(2 * math.pi))


def test_a_gaussian_policy_is_its_mean_and_its_spread():
    policy, (obs, noise) = make_gaussian(), inputs(SPEC)
    mean, log_std = policy.denoiser.moments(policy.encode(obs))
    raw = (mean + log_std.exp() * noise).clamp(-1, 1)
    torch.testing.assert_close(policy.sample(obs, noise), policy.executed(raw))
    assert policy.acting_scale == 0
    torch.testing.assert_close(policy.sample(obs, 0 * noise), policy.executed(mean.clamp(-1, 1)))


def test_a_gaussian_learns_the_weighted_mean_and_spread():
    """Half of the chunks at -0.5 and half at 0.5; the better ones count ``e`` times as much."""
    policy = GaussianPolicy(POINT, GaussianConfig({"type": "gaussian", "hidden_dims": [16]}))
    obs, _, side = two_clusters()
    chunk = side[:, None, None].expand(-1, 2, 1).contiguous()
    weight = awr_weights((side > 0).float(), beta=1.0)
    share = math.e / (1 + math.e)
    learn(lambda generator: policy.loss(obs, chunk, weight=weight), policy)
    mean, log_std = policy.freeze().denoiser.moments(policy.encode(obs))
    assert float(mean.mean()) == pytest.approx(share - 0.5, abs=0.02)
    spread = math.sqrt(share * (1 - share))
    assert log_std.exp().flatten().tolist() == pytest.approx([spread] * 2, abs=0.02)


def test_a_gaussian_averages_the_good_actions_that_a_flow_keeps_apart():
    """Both clusters are good and what lies between them is not: why the paper's baseline is not the only one here."""
    obs, chunk, _ = two_clusters()
    middle = 0.1 * torch.randn(256, 2, 1, generator=torch.Generator().manual_seed(5))
    obs, chunk = torch.cat([obs, obs]), torch.cat([chunk, middle])
    weight = awr_weights(torch.cat([torch.ones(256), -torch.ones(256)]), beta=3.0)
    noise = torch.randn(512, 2, 1, generator=torch.Generator().manual_seed(2))
    between = {}
    for name, policy in (
        ("gaussian", GaussianPolicy(POINT, GaussianConfig({"type": "gaussian", "hidden_dims": [16]}))),
        ("flow", make_base(spec=POINT, label_dim=0)),
    ):
        policy.fit_normalizers(obs, chunk)
        learn(lambda generator, policy=policy: policy.loss(obs, chunk, generator, weight=weight), policy)
        policy.freeze()
        scale = getattr(policy, "acting_scale", 1.0)
        between[name] = float((policy.sample(obs, scale * noise).mean(1).abs() < 0.25).float().mean())
    assert between["gaussian"] > 0.9 and between["flow"] < 0.25
