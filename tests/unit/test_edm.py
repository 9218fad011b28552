"""EDM against diffusers and against what is known of Gaussian data."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler

from dsrl.edm import EDM, EDMConfig
from dsrl.errors import DsrlError


def exact(std):
    """The denoiser of data from ``N(0, std^2)``."""
    return lambda x, sigma: x * std**2 / (std**2 + sigma**2)


def test_noise_levels_and_preconditioning_are_those_of_the_paper():
    edm = EDM(EDMConfig(sampling_steps=5, sigma_min=0.01, sigma_max=10.0, rho=3.0))
    third = 1 / 3
    grid = [(10**third + i / 4 * (0.01**third - 10**third)) ** 3 for i in range(5)]
    torch.testing.assert_close(edm.sigmas, [*grid, 0.0], rtol=1e-5, atol=0)
    x, sigma = torch.randn(3, 4, 2), torch.tensor([0.1, 1.0, 7.0])
    seen = []

    def network(scaled, time):
        seen.append((scaled, time))
        return torch.ones_like(scaled)

    s = sigma[:, None, None]
    denoised = edm.denoise(network, x, sigma)
    torch.testing.assert_close(denoised, x / (s**2 + 1) + s / (s**2 + 1).sqrt())
    torch.testing.assert_close(seen[0][0], x / (s**2 + 1).sqrt())
    torch.testing.assert_close(seen[0][1], sigma.log() / 4)


def test_without_churn_and_second_order_it_is_the_scheduler_of_diffusers():
    config = EDMConfig(sampling_steps=12, churn=0.0, second_order=False)
    noise = torch.randn(4, 3, 2)
    ours = EDM(config).sample(exact(0.7), noise)
    scheduler = EDMEulerScheduler(0.002, 80.0, sigma_data=1.0)
    scheduler.set_timesteps(12)
    x = noise * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        sigma = float(scheduler.sigmas[scheduler.step_index])
        x = scheduler.step(torch.zeros_like(x), t, x, pred_original_sample=exact(0.7)(x, sigma)).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_heun_follows_the_flow_of_a_gaussian_and_euler_less_closely():
    # along the probability flow x / sqrt(std^2 + sigma^2) stays the same
    noise = torch.randn(200, 1, 1, dtype=torch.float64)
    truth = noise * 80 * 0.5 / math.sqrt(0.25 + 80**2)

    def error(steps, second_order):
        edm = EDM(EDMConfig(sampling_steps=steps, churn=0.0, second_order=second_order))
        return float((edm.sample(exact(0.5), noise) - truth).abs().max() / truth.abs().max())

    # twice the steps: a quarter of the error for the second order, half of it for the first
    assert error(64, True) < 0.01
    assert error(64, True) / error(32, True) < 0.35 < error(64, False) / error(32, False)


def test_churn_draws_from_the_same_gaussian():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, generator=generator)
    config = EDMConfig(sampling_steps=256, churn=80.0, churn_scale=1.0)
    x = EDM(config).sample(exact(0.5), noise, generator)
    assert abs(float(x.std()) / 0.5 - 1) < 0.02
    assert abs(float(x.mean())) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([x[:, 0], noise[:, 0]]))[0, 1])) < 0.9, "new noise came in"


def test_the_loss_of_the_exact_denoiser_is_one():
    # E (s^2 + 1) / s^2 * posterior variance s^2 / (s^2 + 1); for unit variance the skip connection alone is exact
    generator = torch.Generator().manual_seed(0)
    loss = EDM(EDMConfig()).loss(
        lambda x, t: torch.zeros_like(x), torch.randn(50_000, 2, generator=generator), generator
    )
    assert float(loss) == pytest.approx(1.0, rel=0.02)


def test_guidance_sees_every_step_but_the_first_and_the_last():
    seen = []

    def guide(step, x, estimate):
        seen.append(step)
        torch.testing.assert_close(estimate, x / (1 + sigmas[step] ** 2), rtol=0.2, atol=0.2)
        return x

    edm = EDM(EDMConfig(sampling_steps=16, churn=0.0))
    sigmas = edm.sigmas
    edm.sample(exact(1.0), torch.randn(5, 2), guide=guide)
    assert seen == list(range(1, 15))


def test_impossible_settings_are_refused():
    with pytest.raises(DsrlError, match="sampling-steps is 1"):
        EDMConfig(sampling_steps=1)
    with pytest.raises(DsrlError, match="sigma-min"):
        EDMConfig(sigma_min=2.0, sigma_max=1.0)
