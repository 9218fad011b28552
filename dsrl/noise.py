"""Which noise the agent may choose, and how its action becomes noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any, get_args

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from dsrl.config import NoiseRest, NoiseSpaceConfig
from dsrl.errors import DsrlError


class PriorBox(spaces.Box):
    """A box of half-width ``bound`` whose ``sample`` is the base policy: ``N(0, I)`` clipped to the box.

    Whoever explores with ``action_space.sample()`` (stable-baselines3 does, until ``learning_starts``) then plays the
    base policy instead of uniform noise, and the label that is stored is the noise that was executed.
    """

    def __init__(self, shape: tuple[int, ...], bound: float, seed: int | np.random.Generator | None = None):
        super().__init__(-bound, bound, shape=shape, dtype=np.float32, seed=seed)
        self.bound = bound

    def sample(self, mask: None = None, probability: None = None) -> np.ndarray:
        """One draw of ``clip(N(0, I), -bound, bound)``."""
        noise = self.np_random.standard_normal(self.shape)
        return np.clip(noise, self.low, self.high).astype(np.float32)

    def __repr__(self) -> str:
        return f"PriorBox({self.shape}, bound={self.bound})"


@dataclass(frozen=True)
class NoiseSpace:
    """The box ``w = bound * u``, ``u`` in ``[-1, 1]`` (arXiv 2506.15799, section 4), over the noise or a part of it.

    ===========  =============================================================================  =========
    space        the agent chooses                                                              size
    ===========  =============================================================================  =========
    full         the whole noise, of any shape                                                  of it all
    ``rows=k``   the first k rows of ``(Tp, Da)``; the rest is drawn from the prior, zero, or   ``k * Da``
                 repeats them in turn
    ``basis=r``  the weights of r cosines over the horizon, slowest first; the first is         ``r * Da``
                 constant in time
    ===========  =============================================================================  =========

    Under ``N(0, I)`` weights, a basis gives the projection of the prior on its cosines, so it has less variance than
    the prior. One repeated row (``rows=1, rest="repeat"``, the published pi0 code) keeps the variance of every row and
    loses their independence, which destroys policies whose noise is not constant in time: ``dsrl probe
    --noise-spaces`` measures what each space costs.
    """

    noise_shape: tuple[int, ...]
    """of one sample, usually ``(horizon, action_dim)``"""
    bound: float = 1.5
    """how far from the prior the agent may go, in standard deviations; the authors suggest about 1.5"""
    rows: int | None = None
    """how many rows the agent chooses"""
    rest: NoiseRest = "prior"
    """what the other rows are; the prior leaves the base policy what it is"""
    basis: int | None = None
    """how many cosines the agent weighs"""

    def __post_init__(self) -> None:
        if not np.isfinite(self.bound) or self.bound <= 0:
            raise ValueError(
                f"the noise bound is {self.bound}; it must be positive (1.5 is a good start, 3 covers N(0, I))"
            )
        if self.rest not in get_args(NoiseRest):
            raise ValueError(f"the rest of the noise is '{self.rest}'; it is one of {', '.join(get_args(NoiseRest))}")
        parts = [(name, k) for name, k in (("rows", self.rows), ("basis", self.basis)) if k is not None]
        if not parts:
            return
        if len(parts) == 2:
            raise ValueError("a noise space has rows or a basis, not both")
        name, k = parts[0]
        if len(self.noise_shape) != 2:
            raise ValueError(
                f"this policy's noise has the shape {self.noise_shape}, not (horizon, action_dim), so it has no {name} "
                "to choose from; use the full noise"
            )
        if not isinstance(k, int) or not 1 <= k <= self.noise_shape[0]:
            raise ValueError(
                f"{name} is {k}; it must lie between 1 and {self.noise_shape[0]}, the horizon of the noise"
            )

    @classmethod
    def from_config(cls, noise_shape: tuple[int, ...], bound: float, config: NoiseSpaceConfig) -> NoiseSpace:
        """The noise space that was asked for, over the noise of a policy.

        Raises:
            DsrlError: when this noise has no such space.
        """
        try:
            return cls(noise_shape, bound, config.rows, config.rest, config.basis)
        except ValueError as misfit:
            raise DsrlError(f"--noise: {misfit}") from misfit

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of the agent's action before it is flattened: the noise's own, with fewer rows."""
        k = self.rows or self.basis
        return self.noise_shape if k is None else (k, *self.noise_shape[1:])

    @property
    def size(self) -> int:
        """Length of the agent's action."""
        return prod(self.action_shape)

    @property
    def rest_size(self) -> int:
        """How many numbers are drawn from the prior beside the action."""
        return prod(self.noise_shape) - self.size if self.rows and self.rest == "prior" else 0

    @property
    def keeps_prior(self) -> bool:
        """Whether an agent that plays ``N(0, I)`` is the base policy."""
        return self.size + self.rest_size == prod(self.noise_shape)

    def action_space(self, n_envs: int | None = None, seed: int | None = None) -> PriorBox:
        """The agent's action space ``(size,)``, or that of ``n_envs`` environments side by side, ``(n_envs, size)``."""
        return PriorBox((self.size,) if n_envs is None else (n_envs, self.size), self.bound, seed)

    def to_noise(self, action: Tensor, rest: Tensor | None = None) -> Tensor:
        """``(B, size)`` -> ``(B, *noise_shape)``.

        Args:
            action: what the agent chose.
            rest: ``(B, rest_size)`` from ``N(0, I)``, where the rest of the noise is drawn from the prior.

        Raises:
            ValueError: when one of them has another length.
        """
        if action.shape[-1] != self.size:
            raise ValueError(
                f"action has length {action.shape[-1]}, this noise space has {self.size} = {self.action_shape}"
            )
        given = 0 if rest is None else rest.shape[-1]
        if given != self.rest_size:
            raise ValueError(
                f"{given} numbers of the rest of the noise were given, this noise space has {self.rest_size}"
            )
        chosen = action.unflatten(-1, self.action_shape)
        if self.basis is not None:
            return torch.einsum("tk,...kd->...td", cosines(self.noise_shape[0], self.basis).to(action), chosen)
        if self.rows is None:
            return chosen
        horizon, width = self.noise_shape
        if self.rest == "repeat":
            return torch.cat([chosen] * ceil(horizon / self.rows), dim=-2)[..., :horizon, :]
        left = (horizon - self.rows, width)
        others = action.new_zeros(*action.shape[:-1], *left)
        if rest is not None and self.rest == "prior":
            others = rest.to(action).unflatten(-1, left)
        return torch.cat([chosen, others], dim=-2)

    def project(self, noise: Tensor, clip: bool = False) -> Tensor:
        """``(B, *noise_shape)`` -> the same: what becomes of a draw from the prior in this space.

        Args:
            noise: from ``N(0, I)``.
            clip: bring what the agent chooses into its box; the agent's warm-up plays that.
        """
        if self.basis is not None:
            weights = cosines(self.noise_shape[0], self.basis).to(noise)
            action = torch.einsum("tk,...td->...kd", weights, noise).flatten(1)
        else:
            action = noise.flatten(1)[:, : self.size]
        rest = noise.flatten(1)[:, self.size :] if self.rest_size else None
        return self.to_noise(action.clamp(-self.bound, self.bound) if clip else action, rest)

    def layout(self) -> dict[str, Any]:
        """``rows``, ``rest`` and ``basis`` as plain values, for files; empty for the full noise."""
        if self.rows is not None:
            return {"rows": self.rows, "rest": self.rest}
        return {} if self.basis is None else {"basis": self.basis}

    def describe(self) -> str:
        """``first row repeated``."""
        if self.basis is not None:
            return "constant in time" if self.basis == 1 else f"{self.basis} slowest cosines in time"
        if self.rows is None:
            return "full"
        first = "first row" if self.rows == 1 else f"first {self.rows} rows"
        return {
            "repeat": f"{first} repeated",
            "zero": f"{first}, the rest zero",
            "prior": f"{first}, the rest from the prior",
        }[self.rest]


def reduced_spaces(noise_shape: tuple[int, ...], bound: float) -> list[NoiseSpace]:
    """What is worth comparing with the full noise; nothing, where the noise has no two rows."""
    if len(noise_shape) != 2 or noise_shape[0] < 2:
        return []
    horizon = noise_shape[0]
    spaces = [NoiseSpace(noise_shape, bound, rows=1, rest=rest) for rest in get_args(NoiseRest)]
    if horizon >= 4:
        spaces.append(NoiseSpace(noise_shape, bound, rows=horizon // 2, rest="repeat"))
    return spaces + [NoiseSpace(noise_shape, bound, basis=k) for k in (1, 2) if k < horizon]


@cache
def cosines(horizon: int, count: int) -> Tensor:
    """``(horizon, count)``: the first columns of the orthonormal DCT-II; the first is constant, then ever faster."""
    time = torch.arange(horizon, dtype=torch.float64)[:, None] + 0.5
    columns = torch.cos(torch.pi / horizon * time * torch.arange(count))
    return columns / columns.norm(dim=0)


def episode_generators(seed: int, episodes: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per episode, so that an episode's noise does not depend on what runs beside it."""
    return [
        torch.Generator().manual_seed(int(np.random.SeedSequence([seed, e]).generate_state(1)[0])) for e in episodes
    ]
