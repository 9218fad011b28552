"""Which noise the agent may choose, and how its action becomes noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


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
    """The box ``w = bound * u``, ``u`` in ``[-1, 1]``, over the whole noise of a policy (arXiv 2506.15799, section 4).

    Repeating one row over the horizon, as the published pi0 code does, is left out on purpose: it destroys policies
    whose noise is not constant in time.
    """

    noise_shape: tuple[int, ...]
    """of one sample, usually ``(horizon, action_dim)``"""
    bound: float = 1.5
    """how far from the prior the agent may go, in standard deviations; the authors suggest about 1.5"""

    def __post_init__(self) -> None:
        if not np.isfinite(self.bound) or self.bound <= 0:
            raise ValueError(
                f"the noise bound is {self.bound}; it must be positive (1.5 is a good start, 3 covers N(0, I))"
            )

    @property
    def size(self) -> int:
        """Length of the agent's action."""
        return int(np.prod(self.noise_shape))

    def action_space(self, n_envs: int | None = None, seed: int | None = None) -> PriorBox:
        """The agent's action space ``(size,)``, or that of ``n_envs`` environments side by side, ``(n_envs, size)``."""
        return PriorBox((self.size,) if n_envs is None else (n_envs, self.size), self.bound, seed)

    def to_noise(self, action: Tensor) -> Tensor:
        """``(B, size)`` -> ``(B, *noise_shape)``.

        Raises:
            ValueError: when the action has another length.
        """
        if action.shape[-1] != self.size:
            raise ValueError(
                f"action has length {action.shape[-1]}, this noise space has {self.size} = {self.noise_shape}"
            )
        return action.unflatten(-1, self.noise_shape)


def episode_generators(seed: int, episodes: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per episode, so that an episode's noise does not depend on what runs beside it."""
    return [
        torch.Generator().manual_seed(int(np.random.SeedSequence([seed, e]).generate_state(1)[0])) for e in episodes
    ]
