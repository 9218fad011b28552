"""The networks of noise-aliased SAC: where the actor starts, and what a nat is."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as td

from dsrl.noise_policy import NoiseAliasedPolicy

COND, NOISE = 4, 8


def networks(kind: str, bound: float = 1.5) -> NoiseAliasedPolicy:
    torch.manual_seed(0)
    observed, noise = spaces.Box(-1, 1, (COND,), np.float32), spaces.Box(-bound, bound, (NOISE,), np.float32)
    return NoiseAliasedPolicy(observed, noise, lambda _: 1e-3, [16], chunk_dim=8, actor=kind)


def shifted(kind: str, bound: float = 1.5) -> NoiseAliasedPolicy:
    policy = networks(kind, bound)
    torch.manual_seed(1)
    with torch.no_grad():
        for head in (policy.actor.mean, policy.actor.log_std):
            head.weight.normal_(0, 0.2)
            head.bias.normal_(0, 0.5)
    return policy


def test_the_actor_starts_as_the_prior_exactly():
    policy, cond = networks("gaussian"), 5 * torch.randn(50, COND)
    mean, log_std = policy.actor.moments(cond)
    assert (mean == 0).all() and (log_std == 0).all()
    noise, divergence = policy.sample_noise(cond)
    assert (divergence == 0).all() and noise.shape == (50, NOISE)


def test_the_divergence_of_a_gaussian_actor_is_its_kl_divergence_in_nats():
    policy, cond = shifted("gaussian"), torch.randn(50, COND)
    mean, log_std = policy.actor.moments(cond)
    prior = td.Normal(torch.zeros(NOISE), torch.ones(NOISE))
    expected = td.kl_divergence(td.Normal(mean, log_std.exp()), prior).sum(dim=-1)
    torch.testing.assert_close(policy.sample_noise(cond)[1], expected, atol=1e-5, rtol=1e-5)
    assert expected.min() > 0.1


@pytest.mark.parametrize("bound", [1.0, 1.5])
def test_the_divergence_of_a_boxed_actor_is_its_log_density(bound: float):
    policy, cond = shifted("box", bound), torch.randn(200, COND)
    noise, density = policy.sample_noise(cond)
    mean, log_std = policy.actor.moments(cond)
    squash = [td.TanhTransform(), td.AffineTransform(0.0, bound)]
    expected = td.TransformedDistribution(td.Normal(mean.double(), log_std.double().exp()), squash)
    inside = (noise.abs() < 0.999 * bound).all(dim=1)  # where the inverse of tanh is still exact
    torch.testing.assert_close(
        density[inside].double(), expected.log_prob(noise.double()).sum(dim=-1)[inside], atol=1e-3, rtol=1e-5
    )
    assert inside.sum() > 100 and noise.abs().max() <= bound


def test_a_larger_box_lowers_the_log_density_by_the_dimension_times_its_logarithm():
    """So a temperature that aims at nats means the same for every bound."""
    cond, densities = torch.randn(20, COND), []
    for bound in (1.0, 2.5):
        policy = shifted("box", bound)
        torch.manual_seed(7)
        densities.append(policy.sample_noise(cond)[1])
    difference = densities[0] - densities[1]
    torch.testing.assert_close(difference, torch.full((20,), NOISE * np.log(2.5)), atol=1e-4, rtol=0, check_dtype=False)
