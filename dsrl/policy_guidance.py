"""Policy guidance (arXiv 2404.06356): trajectories are denoised while their actions drift to what a policy would do.

``p(trajectory) * prod_t pi(a_t | s_t)^weight`` is what it aims at: the data, tilted towards the policy, not the own
trajectories of the policy. A weight that is too large leaves the data.

By default the drift of a step is in proportion to the noise that the step removes, so all noise levels move the result
alike, and what the model can still put right, states for one, follows the actions. The paper's schedule hardly looks at
the noise: a drift means nothing while there is much of it, and most where nothing follows any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dsrl.errors import DsrlError


@dataclass(frozen=True)
class PolicyGuidance:
    """How strongly, and where."""

    weight: float = 3.0
    """0 is no guidance. What is too much depends on how far the policy is from the data: compare dynamics_mse with that
    of unguided windows. 0.3 is about the same for the cosine schedule"""
    schedule: Literal["noise", "cosine"] = "noise"
    """``noise``: in proportion to the noise that a step removes; ``cosine``: that of the paper"""
    cosine: float = 0.3
    """of the bump in the schedule of the paper"""
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

    def weight_at(self, step: int, sigmas: Sequence[float]) -> float:
        """Of the gradient before step ``k`` of ``n``; 0 before the last.

        ``noise``: ``weight * (sigma_k - sigma_{k+1})``;
        ``cosine``: ``weight * (1 - k / n + cosine * sin(pi (k + 1) / n))``.

        Args:
            step: ``k``, from 0.
            sigmas: noise levels of the ``n`` steps, and the 0 behind them.
        """
        n_steps = len(sigmas) - 1
        if step >= n_steps - 1:
            return 0.0
        if self.schedule == "noise":
            return self.weight * (sigmas[step] - sigmas[step + 1])
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
