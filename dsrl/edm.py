"""EDM (arXiv 2206.00364): preconditioning, loss and noise levels of a denoiser, and the stochastic Heun sampler.

The grid of noise levels and the preconditioning are those of diffusers' ``EDMEulerScheduler``. Its ``step`` is used by
the tests only: it is of first order, and with churn it gives the added noise to a prediction that was made without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.limits import within

Denoise = Callable[[Tensor, float], Tensor]
"""``(x (B, ...), sigma)`` -> the estimate of what is clean, ``(B, ...)``"""
Guide = Callable[[int, Tensor, Tensor], Tensor]
"""``(step, x, latest estimate)`` -> ``x`` before that step"""


@dataclass(frozen=True)
class EDMConfig:
    """Noise levels in training and sampling; names of the paper in brackets."""

    sampling_steps: int = 32
    """[N]; a step takes two network evaluations, the last one takes one"""
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    """larger puts more of the steps at small noise"""
    churn: float = 10.0
    """[S_churn] noise that is added again, summed over the steps; 0 is deterministic. Per step it is that of 80 over
    256 steps (arXiv 2404.06356)"""
    churn_range: tuple[float, float] = (0.05, 50.0)
    """[S_tmin, S_tmax]"""
    churn_scale: float = 1.003
    """[S_noise]"""
    second_order: bool = True
    """Heun; False is Euler at half the cost"""
    p_mean: float = -1.2
    p_std: float = 1.2
    """log sigma in training is N(p_mean, p_std^2)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "churn_range", tuple(self.churn_range))
        within(self, "[2, inf)", "sampling_steps", prefix="edm.")
        within(self, "(0, inf)", "sigma_min", "sigma_max", "rho", "p_std", prefix="edm.")
        within(self, "[0, inf)", "churn", "churn_scale", prefix="edm.")
        if self.sigma_min >= self.sigma_max:
            raise DsrlError(f"--edm.sigma-min is {self.sigma_min}; it must be below --edm.sigma-max {self.sigma_max}")


class EDM:
    """Data of unit variance, noised as ``x = x0 + sigma * eps``."""

    def __init__(self, config: EDMConfig):
        self.config = config
        self.scheduler: Any = EDMEulerScheduler(config.sigma_min, config.sigma_max, sigma_data=1.0, rho=config.rho)
        self.scheduler.set_timesteps(config.sampling_steps)

    @property
    def sigmas(self) -> list[float]:
        """Of the steps, falling, and 0 behind them (eq. 5)."""
        return self.scheduler.sigmas.tolist()

    def denoise(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor) -> Tensor:
        """``D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)`` (eq. 7), ``x (B, ...)``, ``sigma (B,)``."""
        per_row = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        prediction = network(self.scheduler.precondition_inputs(x, per_row), self.scheduler.precondition_noise(sigma))
        return self.scheduler.precondition_outputs(x, prediction, per_row)

    def loss(
        self, network: Callable[[Tensor, Tensor], Tensor], x0: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """``E (sigma^2 + 1) / sigma^2 * |D(x0 + sigma eps, sigma) - x0|^2`` over log-normal sigma (table 1)."""
        config = self.config
        draw = torch.randn(len(x0), generator=generator, device=x0.device, dtype=x0.dtype)
        sigma = (config.p_mean + config.p_std * draw).exp()
        noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        per_row = sigma.reshape(-1, *(1,) * (x0.ndim - 1))
        error = self.denoise(network, x0 + per_row * noise, sigma) - x0
        return ((1 + per_row.square()) / per_row.square() * error.square()).mean()

    @torch.no_grad()
    def sample(
        self, denoise: Denoise, noise: Tensor, generator: torch.Generator | None = None, guide: Guide | None = None
    ) -> Tensor:
        """Algorithm 2 of the paper.

        Args:
            denoise: the estimate of what is clean.
            noise: ``N(0, I)``, ``(B, ...)``.
            generator: of the churn, on the device of the noise.
            guide: changes ``x`` before every step but the first, where there is nothing but noise, and the last. What
                it is told of the clean sample is the latest estimate, at the noise level of its step for the
                second order, so guidance costs no network evaluation.
        """
        sigmas, config = self.sigmas, self.config
        most = min(config.churn / config.sampling_steps, math.sqrt(2) - 1)
        x = noise * sigmas[0]
        estimate = x
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            if guide is not None and 0 < step < config.sampling_steps - 1:
                x = guide(step, x, estimate)
            # 1. add noise: x_hat at sigma_hat
            low, high = config.churn_range
            sigma_hat = sigma * (1 + (most if low <= sigma <= high else 0.0))
            if sigma_hat > sigma:
                fresh = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + math.sqrt(sigma_hat**2 - sigma**2) * config.churn_scale * fresh
            # 2. Euler from x_hat, which the public code of arXiv 2404.06356 takes from before the noise was added
            estimate = denoise(x, sigma_hat)
            slope = (x - estimate) / sigma_hat
            ahead = x + (after - sigma_hat) * slope
            # 3. the slope there, and the mean of both
            if after > 0 and config.second_order:
                estimate = denoise(ahead, after)
                slope = (slope + (ahead - estimate) / after) / 2
                ahead = x + (after - sigma_hat) * slope
            x = ahead
        return x
