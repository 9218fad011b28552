"""Classifier-free guidance: a reference model, a conditional one, and a weight for what tells them apart.

``guided = reference + w * (conditional - reference)``, with ``w = 0`` the reference and ``w = 1`` the conditional
(arXiv 2207.12598, whose own weight is ``w - 1``). CFGRL (arXiv 2505.23458) takes a policy for the reference, and for
the conditional the same policy when it is told that its action is a good one.

What is exact: the combination is the same for every parametrisation, and at every noise level it is that of the two
scores. What is not: running a sampler on it does not draw from the tilted density ``reference^(1-w) * conditional^w``,
because the score of that density, once noised, is not the combination (arXiv 2408.09000). Nor does a larger ``w`` mean
a larger return, even where everything is exact. ``tests/unit/test_guidance_theory.py`` has both in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsrl.errors import DsrlError
from dsrl.sampler import Prediction, Predictor, Sampler

Weight = float | Tensor
"""One for all, or one per row, ``(B,)``."""


def combine(reference: Tensor, conditional: Tensor, weight: Weight) -> Tensor:
    """``reference + weight * (conditional - reference)``; 0 and 1 give one of the two to the bit.

    Args:
        reference, conditional: ``(B, ...)``, predictions of the same kind for the same ``x``.
        weight: one number, or ``(B,)``.
    """
    if isinstance(weight, Tensor):
        weight = weight.to(reference).reshape(-1, *(1,) * (reference.ndim - 1))
    return torch.lerp(reference, conditional, weight)


def clean_chunk(prediction: Prediction, alpha: float, sigma: float) -> tuple[float, float]:
    """``(a, b)`` such that ``x0 = a * x + b * m``, where ``m`` is what is predicted.

    Raises:
        ValueError: for an unknown prediction, or where ``x`` has no signal from which ``eps`` could tell ``x0``.
    """
    if prediction == "epsilon" and alpha == 0:
        raise ValueError("epsilon does not say what the clean chunk is where no signal is left; use another prediction")
    known = {
        "epsilon": lambda: (1 / alpha, -sigma / alpha),
        "sample": lambda: (0.0, 1.0),
        "v_prediction": lambda: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
        "flow": lambda: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    }
    if prediction not in known:
        raise ValueError(f"unknown prediction {prediction!r}; known are {', '.join(known)}")
    return known[prediction]()


def convert(m: Tensor, x: Tensor, source: Prediction, target: Prediction, alpha: float, sigma: float) -> Tensor:
    """What a network that predicts ``target`` would have said instead of ``m``, given the same ``x``.

    Raises:
        ValueError: for an unknown prediction, or where one of the two does not determine the other.
    """
    if source == target:
        return m
    (a, b), (c, d) = clean_chunk(source, alpha, sigma), clean_chunk(target, alpha, sigma)
    if d == 0:
        raise ValueError(f"{target} does not depend on the clean chunk where no noise is left")
    # x0 = a x + b m = c x + d m'
    return torch.mul(m, b / d).add_(x, alpha=(a - c) / d)


@dataclass(frozen=True)
class Guidance:
    """How two models are combined while a chunk is sampled. It belongs to the policy as its sampler does."""

    weight: float = 1.0
    """0 is the reference, 1 the conditional, more exaggerates what tells them apart"""
    interval: tuple[float, float] = (0.0, 1.0)
    """noise levels ``sigma / (alpha + sigma)`` between which it does: 1 is noise, 0 the finished chunk. Elsewhere the
    weight is at most 1 (arXiv 2404.07724)"""
    clip_inside: bool = True
    """clip the guided estimate of the clean chunk in every step, if the reference's sampler clips its own; False clips
    the finished chunk only, also at weight 0"""
    max_weight: float = 3.0
    """largest weight that the policy is meant for: only 0 and 1 are ever trained, what lies beyond 1 is extrapolated"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", tuple(self.interval))
        check_weight(self.weight)
        check_weight(self.max_weight, "the largest guidance weight")
        if len(self.interval) != 2 or not 0.0 <= self.interval[0] <= self.interval[1] <= 1.0:
            raise DsrlError(
                f"the guidance interval is {self.interval}; it must be two noise levels, the lower one first, between "
                "0 (the finished chunk) and 1 (noise)"
            )

    def weight_at(self, noise_level: float, weight: Weight) -> Weight:
        """``weight`` inside the interval, no more than 1 outside."""
        low, high = self.interval
        if low <= noise_level <= high:
            return weight
        return weight.clamp(max=1.0) if isinstance(weight, Tensor) else min(weight, 1.0)

    def concern(self, weight: float) -> str | None:
        """What speaks against this weight."""
        if weight <= self.max_weight:
            return None
        return (
            f"the guidance weight {weight:g} lies above {self.max_weight:g}, the largest one that this policy is meant "
            "for; look at success, clipped and spread of `dsrl evaluate --guidance-weight 0,1,1.5,2,3,5` first"
        )


def check_weight(weight: float, name: str = "--guidance-weight") -> float:
    """The weight itself.

    Raises:
        DsrlError: when it is negative or not finite.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise DsrlError(
            f"{name} is {weight}; it must be finite and not negative: 0 is the reference, 1 the conditional "
            "policy, and a negative weight would prefer what is bad"
        )
    return float(weight)


class Branch(NamedTuple):
    """A network and what it is told."""

    denoiser: nn.Module
    cond: Tensor
    """``(B, C)``"""


class Addend(Branch):
    """A conditional branch that predicts what is to be added to the reference."""


class GuidedSampler:
    """Runs the reference's sampler on the guided prediction.

    Where both branches are one network, it is asked once per step, for both conditions in one batch. Where nothing is
    left of one branch (weight 0, and weight 1) it is not asked at all, so these cost and give what the other one does
    alone, to the bit. A weight per row asks both always; its zeros give the reference up to the rounding of a batch.

    Args:
        sampler: of the reference.
        guidance: weight, interval, clipping.
        prediction: of the reference, as its sampler expects it.
        conditional_prediction: of the conditional; left out: the same.
        clip_range: half-width of the box of the finished chunk, where ``guidance`` clips there only; left out: the
            sampler's own.

    Raises:
        ValueError: for a prediction that is unknown, or cannot be converted somewhere on the way.
    """

    def __init__(
        self,
        sampler: Sampler,
        guidance: Guidance,
        prediction: Prediction,
        conditional_prediction: Prediction | None = None,
        clip_range: float | None = None,
    ):
        self.guidance = guidance
        self.prediction: Prediction = prediction
        self.conditional_prediction: Prediction = conditional_prediction or prediction
        self.sampler = sampler if guidance.clip_inside else clip_at_the_end(sampler, clip_range)
        # another network is folded for itself
        self.second = Sampler(self.sampler.steps, self.sampler.final_clip)
        for step in self.sampler.steps:
            convert(torch.zeros(1), torch.zeros(1), self.conditional_prediction, prediction, step.alpha, step.sigma)

    @torch.no_grad()
    def __call__(self, reference: Branch, conditional: Branch, noise: Tensor, weight: Weight | None = None) -> Tensor:
        """``(B, Tp, Da)`` -> ``(B, Tp, Da)``, without gradients; ``weight`` overrides that of the guidance."""
        weight = self.guidance.weight if weight is None else weight
        weight = weight if isinstance(weight, Tensor) else check_weight(weight)
        weights = [self.guidance.weight_at(step.noise_level, weight) for step in self.sampler.steps]
        if _all(weights, 0.0):
            return self.sampler(*reference, noise)
        if (
            _all(weights, 1.0)
            and self.conditional_prediction == self.prediction
            and not isinstance(conditional, Addend)
        ):
            return self._sampler_of(conditional, reference)(*conditional, noise)
        with torch.inference_mode():
            chunk = self.sampler.run(self._predictor(reference, conditional, noise.shape[1:], weights), noise)
        return chunk.clone()

    def _predictor(
        self, reference: Branch, conditional: Branch, shape: Sequence[int], weights: Sequence[Weight]
    ) -> Predictor:
        own = self._sampler_of(conditional, reference)
        # where the weight is 1 outside the interval, the reference has no say, unless it is added to
        asked = not isinstance(conditional, Addend) and any(_all([weight], 1.0) for weight in weights)
        alone = own.predictor(*conditional, shape) if asked else None
        pair = self._pair(reference, conditional, shape)

        def predict(index: int, x: Tensor) -> Tensor:
            step, weight = self.sampler.steps[index], weights[index]
            if alone is not None and _all([weight], 1.0):
                return self._in_kind(alone(index, x), x, step.alpha, step.sigma)
            first, second = pair(index, x)
            return combine(first, self._in_kind(second, x, step.alpha, step.sigma), weight)

        return predict

    def _pair(
        self, reference: Branch, conditional: Branch, shape: Sequence[int]
    ) -> Callable[[int, Tensor], Sequence[Tensor]]:
        """What both predict."""
        if reference.denoiser is conditional.denoiser:
            both = self.sampler.predictor(reference.denoiser, torch.cat([reference.cond, conditional.cond]), shape)
            return lambda index, x: both(index, torch.cat([x, x])).chunk(2)
        first, second = self.sampler.predictor(*reference, shape), self.second.predictor(*conditional, shape)
        if not isinstance(conditional, Addend):
            return lambda index, x: (first(index, x), second(index, x))

        def sum_up(index: int, x: Tensor) -> tuple[Tensor, Tensor]:
            prediction = first(index, x)
            return prediction, prediction + second(index, x)

        return sum_up

    def _sampler_of(self, conditional: Branch, reference: Branch) -> Sampler:
        return self.sampler if conditional.denoiser is reference.denoiser else self.second

    def _in_kind(self, m: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """A prediction of the conditional, as the sampler expects it."""
        return convert(m, x, self.conditional_prediction, self.prediction, alpha, sigma)


def clip_at_the_end(sampler: Sampler, clip_range: float | None = None) -> Sampler:
    """The same steps without a bound; the finished chunk is kept within ``clip_range``, or the sampler's own box."""
    steps = [step.unclipped() for step in sampler.steps]
    return Sampler(steps, sampler.final_clip if clip_range is None else clip_range)


def _all(weights: Sequence[Weight], value: float) -> bool:
    """Whether all are this one number; those of a tensor are not looked at, which would wait for the device."""
    return all(not isinstance(weight, Tensor) and weight == value for weight in weights)
