"""CFGRL around a policy that stays as it is: a second network learns what good actions add to its predictions."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dsrl.cfgrl import Guided
from dsrl.diffusion import DiffusionPolicy, FlowPolicy
from dsrl.guidance import Addend, Branch, Guidance
from dsrl.policy import Obs


class AnchoredPolicy(Guided):
    """``reference = base``, ``conditional = base + residual``, so ``guided = base + w * residual``.

    The residual is a copy of the base's network whose last layer is zero at first, as in ControlNet (arXiv 2302.05543):
    untrained, every weight gives the base to the bit, and what the base knows about observations and noise levels need
    not be learned again. Weight 0 gives the base to the bit at any time (unless ``clip_inside`` is off, which also
    changes where the base is clipped). A chunk costs two networks, as guidance always does.

    Args:
        base: is never trained.
        guidance: weight, interval and clipping; part of the policy as its sampler is.
    """

    kind = "anchored"
    learns_from_bad = False

    def __init__(self, base: DiffusionPolicy | FlowPolicy, guidance: Guidance):
        super().__init__(base.requires_grad_(False), guidance)
        self.spec = replace(base.spec, sha256="")  # another policy than its base
        residual: Any = copy.deepcopy(base.denoiser).requires_grad_(True)
        for layer in residual.outputs:
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.residual = residual

    def branches(self, cond: Tensor) -> tuple[Branch, Branch]:
        """The base, and what is added to it."""
        told = self.base.tell(cond)
        return Branch(self.base.denoiser, told), Addend(self.residual, told)

    def loss(self, obs: Obs, chunk: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The base's own denoising loss of ``base + residual`` on good chunks; bad ones have no say.

        Args:
            obs: ``(B, To, Do)`` in environment units.
            chunk: ``(B, Tp, Da)`` in environment units.
            labels: ``(B,)`` in [0, 1], the probability of being a good action, by which a row counts.
            generator: on the policy's device.
        """
        return self.base.loss(obs, chunk, generator, weight=labels, denoiser=self._conditional)

    def _conditional(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with torch.no_grad():
            reference = self.base.denoiser(x, t, cond)
        return reference + self.residual(x, t, cond)
