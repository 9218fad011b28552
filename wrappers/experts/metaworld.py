"""Meta-World's own scripted policies, with a displaced object."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np

from dsrl.wrappers.experts.base import unknown_task

# where the first object stands in the current and in the previous half of the observation
_OBJECT = (slice(4, 7), slice(22, 25))


class MetaWorldExpert:
    """The script of one task; it sees the first object displaced."""

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        if task not in ENV_POLICY_MAP:
            raise unknown_task(task, tuple(ENV_POLICY_MAP))
        self._new_policy: Any = ENV_POLICY_MAP[task]
        self.reset(np.random.default_rng(0), np.zeros(3))

    def reset(self, rng: np.random.Generator, offset: np.ndarray) -> None:
        """Begin an episode with a fresh script."""
        self._policy = self._new_policy()
        self._offset = np.asarray(offset, dtype=np.float64)

    def start(self) -> dict[str, Any]:
        """None."""
        return {}

    def act(self, env: gymnasium.Env) -> np.ndarray:
        """The next action, within the box."""
        obs = np.array(env.unwrapped.raw_obs)  # type: ignore[attr-defined]
        for part in _OBJECT:
            obs[part] += self._offset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its gains are high; the box is kept below
            action = self._policy.get_action(obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
