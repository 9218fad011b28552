"""Play a given list of initial states, once each."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym


class SeededEpisodes(gym.Wrapper):
    """Every ``reset`` takes the next of the seeds given to :meth:`set_seeds`; when none is left the environment idles.

    Vectorised environments reset themselves as soon as an episode ends. With a queue of seeds in each copy, an
    evaluation plays exactly the episodes it asked for, whatever was played before and however many copies there are.
    An idle environment returns its last observation, costs nothing and says so in ``info["idle"]``.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self._seeds: deque[int] | None = None
        self._idle = False
        self._last: Any = None

    def set_seeds(self, seeds: Sequence[int] | None) -> None:
        """Queue the seeds of the coming episodes; ``None`` returns to the environment's own resets."""
        self._seeds = None if seeds is None else deque(int(seed) for seed in seeds)
        self._idle = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode of the queue, or idle."""
        if self._seeds is not None:
            self._idle = not self._seeds
            if self._idle and self._last is not None:
                return self._last, {"idle": True}
            seed = self._seeds.popleft() if self._seeds else seed
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, or do nothing while idle."""
        if self._idle:
            return self._last, 0.0, False, False, {"idle": True, "chunk_length": 0}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, reward, terminated, truncated, info
