"""Environments that have what some golden policies read: ``fitting_env:dsrl-test/<name>-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIZES: dict[str, tuple[dict[str, int], int]] = {  # length of each observation, of the action
    "BlockPush": ({"": 16}, 2),
    "Lifting": ({"robot0_eef_pos": 3, "object": 4}, 4),
    "Can": ({"object": 14, "robot0_gripper_qpos": 2, "robot0_eef_quat": 4, "robot0_eef_pos": 3}, 7),
    "AgentPos": ({"agent_pos": 4, "environment_state": 5}, 3),
}


class Fitting(gymnasium.Env[Any, np.ndarray]):
    """A random walk that the action pushes; the reward is 1 where it is close to the origin.

    Args:
        sizes: length by key; a single key without a name makes the observation a Box.
        action_dim: length of the action.
    """

    def __init__(self, sizes: dict[str, int], action_dim: int, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        boxes = {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()}
        self.observation_space = boxes[""] if "" in boxes else spaces.Dict(boxes)
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
        self._sizes = sizes
        self._state = np.zeros(sum(sizes.values()), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state = self.np_random.uniform(-1, 1, self._state.shape).astype(np.float32)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        walk = 0.01 * self.np_random.standard_normal(self._state.shape)
        walk[: len(action)] += 0.05 * action
        self._state = (self._state + walk).clip(-1, 1).astype(np.float32)
        return self._observe(), float(np.abs(self._state[: len(action)]).max() < 0.5), False, False, {}

    def _observe(self) -> Any:
        parts = np.split(self._state, np.cumsum(list(self._sizes.values()))[:-1])
        named = dict(zip(self._sizes, parts, strict=True))
        return named.get("", named)


for _name, (_sizes, _action_dim) in SIZES.items():
    gymnasium.register(
        f"dsrl-test/{_name}-v0", Fitting, max_episode_steps=24, kwargs={"sizes": _sizes, "action_dim": _action_dim}
    )
