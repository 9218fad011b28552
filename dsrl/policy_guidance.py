"""Policy guidance (arXiv 2404.06356): trajectories are denoised while their actions drift to what a policy would do.

``p(trajectory) * prod_t pi(a_t | s_t)^weight`` is what it aims at: the data, tilted towards the policy, not the own
trajectories of the policy. The drift is added as it is, not times the noise level, so it is exact nowhere, means
nothing while the noise is large, and decides at the end. A weight that is too large leaves the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dsrl.errors import DsrlError


@dataclass(frozen=True)
class PolicyGuidance:
    """How strongly, and where."""

    weight: float = 0.3
    """0 is no guidance. What is too much depends on how far the policy is from the data: compare dynamics_mse with that
    of unguided windows"""
    cosine: float = 0.3
    """of the bump in the schedule"""
    normalize: bool = True
    """divide the gradient by its norm over the whole window, so that the weight means the same for every policy. The
    paper leaves that off, and its weight is in units of the gradient"""
    at_denoised: bool = True
    """take the gradient at the estimate of the clean window; False: at the noisy one, as the public code does unless
    told otherwise"""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise DsrlError(
                f"--guidance.weight is {self.weight}; it must be finite and not negative: 0 is no guidance, and a "
                "negative one would make what the policy never does"
            )

    def weight_at(self, step: int, n_steps: int) -> float:
        """``weight * (1 - k / n + cosine * sin(pi (k + 1) / n))`` before step ``k`` of ``n``; 0 before the last."""
        if step >= n_steps - 1:
            return 0.0
        return self.weight * (1 - step / n_steps + self.cosine * math.sin(math.pi * (step + 1) / n_steps))


class Target(Protocol):
    """A policy that says which actions it finds likely. Everything is in environment units.

    ``obs (B, L + 1, Do)`` are what is observed in ``B`` windows of ``L`` env steps, ``action (B, L, Da)`` what is done.
    """

    def drawn(self, n_windows: int, generator: torch.Generator) -> Target:
        """The same with all randomness settled for so many windows, which are then denoised together."""
        ...

    def score(self, obs: Tensor, action: Tensor, sigma: float) -> Tensor:
        """``d log pi(action | obs) / d action``, ``(B, L, Da)``, blurred by noise of about ``sigma`` standard
        deviations of the actions where the policy can say so.
        """
        ...

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """``log pi(action | obs)`` per env step, ``(B, L)``."""
        ...


def drift(x: Tensor, gradient: Tensor, weight: float, normalize: bool) -> Tensor:
    """``x + weight * gradient``, the gradient over its norm if wanted; weight 0 gives ``x`` itself.

    Args:
        x: ``(B, R, C)``, windows in network units.
        gradient: of the log-probability with respect to ``x``, ``(B, R, C)``, zero where nothing is to move.
        weight: of this step.
        normalize: over the whole window, of every window for itself. A gradient of zero stays zero.
    """
    if weight == 0:
        return x
    if normalize:
        norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-8)
        gradient = gradient / norm[:, None, None]
    return x + weight * gradient
