"""Play a whole action chunk as one environment step."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs


class ActionChunk(gym.Wrapper, RecordConstructorArgs):
    """Turns ``env`` into a semi-Markov decision process whose actions are chunks of ``n_action_steps`` actions.

    A chunk stops at the first ``terminated`` or ``truncated``, so the next observation is the true last one. Rewards
    inside a chunk are discounted by ``gamma`` per env step; whoever bootstraps must use ``gamma ** chunk_length``.

    ``info`` of a step:
        ``chunk_length``: env steps that were played.
        ``success``: whether the simulator reported success at any env step of this chunk (where it reports any).
    and at the end of an episode:
        ``is_success``: success at any env step of the episode (the key that stable-baselines3 reads).
        ``success_held``: success at its very last env step.
    """

    def __init__(self, env: gym.Env, n_action_steps: int, gamma: float = 1.0):
        RecordConstructorArgs.__init__(self, n_action_steps=n_action_steps, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        box = env.action_space
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise ValueError(f"action chunks need a one-dimensional Box of actions, this environment has {box}")
        if n_action_steps < 1:
            raise ValueError(f"a chunk has at least one action, not {n_action_steps}")
        self.n_action_steps = n_action_steps
        self.gamma = gamma
        low, high = (np.tile(limit, (n_action_steps, 1)) for limit in (box.low, box.high))
        self.action_space = self._box = spaces.Box(low, high, dtype=box.dtype.type)
        self._succeeded = False
        self._held: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._succeeded, self._held = False, None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Play ``(n_action_steps, action_dim)``, clipped to the limits, until the chunk or the episode ends.

        A shorter chunk is played as it is.
        """
        chunk = np.asarray(action, dtype=self._box.dtype)
        chunk = np.clip(chunk, self._box.low[: len(chunk)], self._box.high[: len(chunk)])
        total, discount, success = 0.0, 1.0, None
        for length, single in enumerate(chunk, start=1):  # noqa: B007 - the length is reported
            obs, reward, terminated, truncated, info = self.env.step(single)
            total += discount * float(reward)
            discount *= self.gamma
            if "success" in info:
                success = bool(success) or bool(info["success"])
            if terminated or truncated:
                break
        if "success" in info:
            self._held = bool(info["success"])
        info = {**info, "chunk_length": length}
        if success is not None:
            self._succeeded |= success
            info["success"] = success
            if terminated or truncated:
                info |= self.ending()
        return obs, total, terminated, truncated, info

    def ending(self) -> dict[str, Any]:
        """What an episode that ends here came to, where the simulator reports a success."""
        return {} if self._held is None else {"is_success": self._succeeded, "success_held": self._held}
