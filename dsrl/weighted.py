"""The guidance weight as a part of the noise: whoever chooses the noise chooses the weight too."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dsrl.cfgrl import Guided
from dsrl.guidance import check_weight
from dsrl.wrapped import WrappedPolicy

REACH = 1.5
"""of the number that says the weight: -1.5 and less are weight 0, which is the reference; 1.5 and more the largest one.
Every agent's box holds them"""


class WeightedPolicy(WrappedPolicy[Guided]):
    """A guided policy with one number more in its noise, which chooses the guidance weight of every decision.

    Zero is the policy's own weight, and the weight is linear on both sides of it. So noise of ``N(0, I)``, the base
    policy of a steered one, plays weights around its own: a quarter of them are below half of it, 7 % are 0.

    Args:
        base: guided.
        max_weight: the largest weight, at least its own.
    """

    kind = "weighted"

    def __init__(self, base: Guided, max_weight: float):
        super().__init__(base)
        own = base.guidance.weight
        if check_weight(max_weight, "the largest weight") < own:
            raise ValueError(f"the largest weight is {max_weight:g}, less than the policy's own, {own:g}")
        self.max_weight = float(max_weight)
        self.size = math.prod(base.spec.noise_shape)
        self.spec = replace(base.spec, noise_shape=(self.size + 1,), sha256="")

    def weight(self, chosen: Tensor) -> Tensor:
        """``(B,)`` -> guidance weights ``(B,)`` in ``[0, max_weight]``."""
        own, part = self.base.guidance.weight, (chosen / REACH).clamp(-1.0, 1.0)
        return own + part * torch.where(part < 0, own, self.max_weight - own)

    @torch.no_grad()
    def decode(self, cond: Tensor, noise: Tensor) -> Tensor:
        """``(B, cond_dim), (B, size + 1)`` -> the executed chunk ``(B, Ta, Da)``; the last number is the weight's.

        Raises:
            ValueError: when the noise has another shape.
        """
        if noise.shape != (len(cond), *self.spec.noise_shape):
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this policy denoises {self.spec.noise_shape} each")
        inner = noise[:, : self.size].unflatten(1, self.base.spec.noise_shape)
        return self.base.decode(cond, inner, self.weight(noise[:, -1].to(cond)))

    def config_dict(self) -> dict[str, Any]:
        """What rebuilds this policy beside its weights."""
        base: Any = self.base
        noise_shape = list(base.spec.noise_shape)
        return {
            "max_weight": self.max_weight,
            "base": {"kind": base.kind, "config": base.config_dict(), "noise_shape": noise_shape},
        }
