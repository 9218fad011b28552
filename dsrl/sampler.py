"""From noise to a chunk, deterministically; what does not depend on the noise is worked out beforehand.

Schedules come from diffusers, so that a checkpoint means here what it means there; only the loop is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from dsrl.networks import MLPDenoiser, StagedDenoiser

Prediction = Literal["epsilon", "sample", "v_prediction", "flow"]
"""What a network predicts of ``x = alpha * x0 + sigma * eps``: ``eps``; ``x0``, as a denoiser of EDM does, whose alpha
is 1 (arXiv 2206.00364); ``v = alpha * eps - sigma * x0``; or ``eps - x0``, the velocity of a rectified flow."""


class Step(NamedTuple):
    """One step: ``y = clamp(x + y_m * m)``, then ``x <- x_y * y + x_x * x + x_m * m``; ``m`` = the prediction.

    ``y`` is the estimate of the clean chunk up to a factor that stands in ``x_y``; ``y_m`` None means ``y = clamp(m)``.
    """

    time: float
    """what the network is told"""
    y_m: float | None
    bound: float | None
    """of ``y``; None: there is no ``y``, an unclipped one is already part of ``x_x`` and ``x_m``"""
    x_y: float
    x_x: float
    x_m: float
    alpha: float
    """how much of the clean chunk stands in ``x`` before the step: ``x = alpha * x0 + sigma * noise``"""
    sigma: float
    """how much of the noise"""

    @property
    def noise_level(self) -> float:
        """``sigma / (alpha + sigma)``, a function of the ratio of the two alone; the ``sigma`` of a rectified flow."""
        return self.sigma / (self.alpha + self.sigma)

    def unclipped(self) -> Step:
        """The same step without a bound."""
        if self.bound is None:
            return self
        y_x, y_m = (0.0, 1.0) if self.y_m is None else (1.0, self.y_m)
        x_x, x_m = self.x_x + self.x_y * y_x, self.x_m + self.x_y * y_m
        return self._replace(y_m=None, bound=None, x_y=0.0, x_x=x_x, x_m=x_m)


Predictor = Callable[[int, Tensor], Tensor]
"""``(index of the step, (B, Tp * Da)) -> (B, Tp * Da)``: what a network predicts for its condition"""


def ddim_steps(scheduler: DDIMScheduler, n_steps: int, use_clipped_model_output: bool = False) -> tuple[Step, ...]:
    """The steps of ``scheduler.step(..., eta=0)`` (arXiv 2010.02502) as numbers.

    Args:
        scheduler: any DDIM scheduler without thresholding.
        n_steps: number of network evaluations.
        use_clipped_model_output: recompute epsilon from the clipped ``x0``, as DPPO does.
    """
    config: Any = scheduler.config
    if config.thresholding:
        raise ValueError("dynamic thresholding couples the dimensions of a chunk; it is not supported, use clip_sample")
    if not 1 <= n_steps <= config.num_train_timesteps:
        raise ValueError(f"{n_steps} sampling steps do not fit into {config.num_train_timesteps} training steps")
    scheduler.set_timesteps(n_steps)
    stride = config.num_train_timesteps // n_steps
    steps = []
    for time in scheduler.timesteps.tolist():
        # time - stride, not the next entry of timesteps: the two differ when "trailing" has to round, and diffusers
        # evaluates the former
        a = scheduler.alphas_cumprod[time]
        a_prev = scheduler.alphas_cumprod[time - stride] if time >= stride else scheduler.final_alpha_cumprod
        clip = float(config.clip_sample_range) if config.clip_sample else None
        steps.append(_ddim_step(time, a, a_prev, config.prediction_type, clip, use_clipped_model_output))
    return tuple(steps)


def flow_steps(scheduler: FlowMatchEulerDiscreteScheduler, n_steps: int) -> tuple[Step, ...]:
    """Euler steps along the flow ``dx/dsigma = m`` from ``sigma = 1`` (noise) to 0, evenly spaced before any shift."""
    # sigmas are given because the scheduler's own end at 1/T, which wastes the last step
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / n_steps, n_steps).tolist())
    sigmas = scheduler.sigmas.double()
    moves = (sigmas[1:] - sigmas[:-1]).tolist()
    rows = zip(scheduler.timesteps.tolist(), moves, sigmas.tolist()[:-1], strict=True)
    return tuple(Step(time, None, None, 0.0, 1.0, move, 1.0 - sigma, sigma) for time, move, sigma in rows)


class Sampler:
    """Runs the steps; equal to the loop over diffusers' scheduler up to rounding.

    Args:
        steps: from :func:`ddim_steps` or :func:`flow_steps`.
        final_clip: bound of the result.
    """

    def __init__(self, steps: Sequence[Step], final_clip: float | None = None):
        self.steps = tuple(steps)
        self.final_clip = final_clip
        self._folded: _FoldedMLP | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}  # a copy works the folding out for its own weights

    @torch.no_grad()
    def __call__(self, denoiser: nn.Module, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, C), (B, Tp, Da)`` -> ``(B, Tp, Da)``, without gradients."""
        with torch.inference_mode():
            chunk = self.run(self.predictor(denoiser, cond, noise.shape[1:]), noise)
        # an ordinary tensor: what inference mode makes cannot take part in a critic's backward pass
        return chunk.clone()

    def predictor(self, denoiser: nn.Module, cond: Tensor, shape: Sequence[int]) -> Predictor:
        """What ``denoiser`` predicts for ``cond (B, C)`` at every step, for chunks of ``shape`` ``(Tp, Da)``, flat."""
        if isinstance(denoiser, MLPDenoiser) and denoiser.is_foldable:
            folded = self._fold(denoiser)
            shifts = folded.shifts(denoiser.cond_mlp(cond))
            return lambda index, x: folded.predict(x, shifts[index])
        times = torch.tensor([step.time for step in self.steps], device=cond.device).unbind()

        def predict(index: int, x: Tensor) -> Tensor:
            network = denoiser.at(self.steps[index].time) if isinstance(denoiser, StagedDenoiser) else denoiser
            return network(x.unflatten(1, shape), times[index], cond).flatten(1)

        return predict

    def run(self, predict: Predictor, noise: Tensor) -> Tensor:
        """``(B, Tp, Da)`` -> ``(B, Tp, Da)``, whatever it is that predicts."""
        x = noise.flatten(1)
        for index, step in enumerate(self.steps):
            x = _advance(step, x, predict(index, x))
        if self.final_clip is not None:
            x = x.clamp(-self.final_clip, self.final_clip)
        return x.reshape(noise.shape)

    def _fold(self, denoiser: MLPDenoiser) -> _FoldedMLP:
        if self._folded is None or not self._folded.is_current(denoiser):
            self._folded = _FoldedMLP(denoiser, self.steps)
        return self._folded


def _ddim_step(time: int, a: Tensor, a_prev: Tensor, kind: str, clip: float | None, use_clipped: bool) -> Step:
    # Notation: sa, sb = sqrt of alpha-bar and of 1 - alpha-bar now; sa_prev, sb_prev = after the step;
    # x0, eps = clean chunk and noise, as linear functions of x and the prediction m: x0 = x0_x * x + x0_m * m
    # roots in float32, as in diffusers: 1 / sa reaches 400, which would show the difference
    sa, sb, sa_prev, sb_prev = (float(v**0.5) for v in (a, 1 - a, a_prev, 1 - a_prev))
    # 1. what was predicted
    if kind == "epsilon":
        if sa == 0:
            raise ValueError("epsilon prediction cannot start where no signal is left; use v_prediction")
        x0_x, x0_m, eps_x, eps_m = 1 / sa, -sb / sa, 0.0, 1.0
    elif kind == "sample":
        x0_x, x0_m, eps_x, eps_m = 0.0, 1.0, 1 / sb, -sa / sb
    elif kind == "v_prediction":
        x0_x, x0_m, eps_x, eps_m = sa, -sb, sb, sa
    else:
        raise ValueError(f"unknown prediction type {kind!r}; known are epsilon, sample and v_prediction")
    # 2. x <- sa_prev * x0 + sb_prev * eps, where a recomputed eps is (x - sa * x0) / sb
    if use_clipped:
        x_x0, x_x, x_m = sa_prev - sb_prev * sa / sb, sb_prev / sb, 0.0
    else:
        x_x0, x_x, x_m = sa_prev, sb_prev * eps_x, sb_prev * eps_m
    if clip is None:
        return Step(time, None, None, 0.0, x_x + x_x0 * x0_x, x_m + x_x0 * x0_m, sa, sb)
    # 3. y = x0 / x0_x saves a multiplication per step; clamping scales along
    if x0_x == 0:
        return Step(time, None, clip / abs(x0_m), x_x0 * x0_m, x_x, x_m, sa, sb)
    return Step(time, x0_m / x0_x, clip / x0_x, x_x0 * x0_x, x_x, x_m, sa, sb)


def _advance(step: Step, x: Tensor, m: Tensor) -> Tensor:
    """One step; ``x`` may be the caller's noise and is left alone."""
    if step.bound is None:
        return torch.mul(m, step.x_m).add_(x, alpha=step.x_x)
    y = torch.clone(m) if step.y_m is None else torch.add(x, m, alpha=step.y_m)
    y.clamp_(-step.bound, step.bound).mul_(step.x_y)
    if step.x_x:
        y.add_(x, alpha=step.x_x)
    if step.x_m:
        y.add_(m, alpha=step.x_m)
    return y


class _FoldedMLP:
    """An MLP denoiser with all that is linear multiplied out beforehand.

    The first layer is linear in (chunk, time embedding, condition), so its product splits into three: the chunk's part
    runs every step, the condition's once per call, the time's once per set of weights. Nothing stands between the last
    block's second layer ``W2`` and the output layer ``Wo``: with ``y`` its input and ``h`` the residual stream,
    ``Wo (h + W2 y + b2) + bo = Wo h + (Wo W2) y + (Wo b2 + bo)``, which is far smaller than ``W2`` itself.
    """

    def __init__(self, denoiser: MLPDenoiser, steps: Sequence[Step]):
        layers: Any = denoiser.layers
        first, *blocks, last = layers
        self.denoiser = denoiser
        self.linears = [module for module in denoiser.modules() if isinstance(module, nn.Linear)]
        self.versions = self._versions()
        # 1. first layer
        chunk_dim, time_dim = last.out_features, denoiser.time_dim
        parts = first.weight.split([chunk_dim, time_dim, first.in_features - chunk_dim - time_dim], dim=1)
        self.of_chunk, of_time, self.of_cond = (part.t().contiguous() for part in parts)
        times = torch.tensor([step.time for step in steps], device=first.weight.device)
        self.time_shift = torch.addmm(first.bias, denoiser.time_embedding(times), of_time)
        # 2. blocks
        *self.blocks, (self.w1, self.b1, w2, b2) = [
            (block.l1.weight.t(), block.l1.bias, block.l2.weight.t(), block.l2.bias) for block in blocks
        ]
        # 3. last block and output layer, in double precision because products of weights add up rounding
        wo, w2, b2 = last.weight.t().double(), w2.double(), b2.double()
        self.of_h = last.weight.t()
        self.of_y = (w2 @ wo).to(last.weight)
        self.out_bias = (b2 @ wo + last.bias).to(last.weight)

    def _versions(self) -> list[tuple[int, int]]:
        # read through the modules: load_state_dict(assign=True) puts other Parameter objects there
        weights = (p for module in self.linears for p in module._parameters.values() if p is not None)
        return [(p.data_ptr(), p._version) for p in weights]

    def is_current(self, denoiser: MLPDenoiser) -> bool:
        """False once weights were loaded, moved or trained: their storage or version counter tells."""
        return denoiser is self.denoiser and self.versions == self._versions()

    def shifts(self, cond: Tensor) -> tuple[Tensor, ...]:
        """``(B, C)``, encoded -> per step what the first layer adds, ``(B, width)``."""
        return (self.time_shift[:, None] + cond @ self.of_cond).unbind()

    def predict(self, x: Tensor, shift: Tensor) -> Tensor:
        """``(B, Tp * Da), (B, width) -> (B, Tp * Da)``."""
        h = torch.addmm(shift, x, self.of_chunk)
        for w1, b1, w2, b2 in self.blocks:
            y = torch.addmm(b1, _mish(h), w1)
            h = torch.addmm(b2, _mish(y), w2).add_(h)
        y = _mish(torch.addmm(self.b1, _mish(h), self.w1))
        return torch.addmm(self.out_bias, h, self.of_h).addmm_(y, self.of_y)


def _mish(x: Tensor) -> Tensor:
    """``x * tanh(softplus(x)) = x * n / (n + 2)`` with ``n = e^x (e^x + 2)``: one exponential instead of three.

    On the CPU that is twice as fast as torch's own for large batches; calls of few numbers are dearer than what they
    save, and a GPU has the one kernel.
    """
    if x.is_cuda or x.numel() < _FEW_NUMBERS or x.dtype not in (torch.float32, torch.float64):
        return F.mish(x)
    e = x.clamp(max=20.0).exp_()  # mish(x) = x up to rounding beyond 20, where e^2x would overflow before long
    n = torch.add(e, 2.0).mul_(e)
    return torch.mul(x, n).div_(n.add_(2.0))


_FEW_NUMBERS = 6_000
