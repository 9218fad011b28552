"""Play a given list of initial states, once each, and remember how an episode began."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

START = "dsrl/start"
"""key of the ``info`` of a reset: what :meth:`SeededEpisodes.set_start` takes"""


class SeededEpisodes(gym.Wrapper):
    """Every ``reset`` takes the next of the seeds given to :meth:`set_seeds`; when none is left the environment idles.

    Vectorised environments reset themselves as soon as an episode ends. With a queue of seeds in each copy, an
    evaluation plays exactly the episodes it asked for, whatever was played before and however many copies there are.
    An idle environment returns its last observation, costs nothing and says so in ``info["idle"]``.

    The ``info`` of every reset holds how the episode began, a seed or the states of the environment's generators, so
    that :meth:`set_start` can begin it again, in another process too.
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

    def set_start(self, start: Mapping[str, Any]) -> int | None:
        """Let the coming ``reset`` begin an episode again; returns the seed that is to be given to it.

        All of an environment's chance has to come from gymnasium's ``np_random``, its own or that of what it wraps.
        """
        if start["seed"] is not None:
            return int(start["seed"])
        if start["generators"]:
            self.env.reset(seed=0)  # before that there may be none here
        for generator, state in zip(_generators(self.env), start["generators"], strict=False):
            generator.bit_generator.state = deepcopy(dict(state))
        return None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode of the queue, or idle."""
        if self._seeds is not None:
            self._idle = not self._seeds
            if self._idle and self._last is not None:
                return self._last, {"idle": True}
            seed = self._seeds.popleft() if self._seeds else seed
        states = None if seed is not None else [deepcopy(g.bit_generator.state) for g in _generators(self.env)]
        self._last, info = self.env.reset(seed=seed, options=options)
        return self._last, {**info, START: {"seed": seed, "generators": states}}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, or do nothing while idle."""
        if self._idle:
            return self._last, 0.0, False, False, {"idle": True, "chunk_length": 0}
        self._last, reward, terminated, truncated, info = self.env.step(action)
        return self._last, reward, terminated, truncated, info


def _generators(env: Any) -> Iterator[np.random.Generator]:
    """Those of an environment, of its wrappers, and of the simulator inside an adapter."""
    while isinstance(env, gym.Env):
        own = vars(env).get("_np_random")
        if isinstance(own, np.random.Generator):
            yield own
        env = vars(env).get("env", vars(env).get("simulator"))
