"""A toy environment that is solved in seconds: a point that has to reach a goal."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ENV_ID = "dsrl/PointReach-v0"
MAX_EPISODE_STEPS = 32


class PointReach(gymnasium.Env[np.ndarray, np.ndarray]):
    """Move a point on the plane ``[-1, 1]^2`` into a small disc around the goal.

    Observation ``(4,)``: position and goal, both in units of the half-width of the plane. Action ``(2,)``: velocity, of
    which one env step covers ``STEP`` of a unit. The goal lies somewhere on a ring around the origin, the point starts
    near the origin. The reward is 1 on arrival, which ends the episode, and 0 before.
    """

    STEP = 0.08
    """units per env step at full velocity: the goal's disc is 7 to 10 steps away, a quarter of the time limit"""
    RING = 0.8
    RADIUS = 0.15
    START = 0.1
    """half-width of the square in which the point starts"""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position = np.zeros(2)
        self._goal = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a goal on the ring and a start near the origin; both come from the environment's own generator."""
        super().reset(seed=seed)
        angle = self.np_random.uniform(-math.pi, math.pi)
        self._goal = self.RING * np.array([math.cos(angle), math.sin(angle)])
        self._position = self.np_random.uniform(-self.START, self.START, size=2)
        return self._observe(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by ``STEP * action``; the time limit is gymnasium's wrapper."""
        # plain floats: numpy's overhead on two numbers would be most of a step's time
        x, y = (_clip(p + self.STEP * _clip(float(v))) for p, v in zip(self._position, action, strict=True))
        self._position[:] = x, y
        success = math.hypot(x - self._goal[0], y - self._goal[1]) <= self.RADIUS
        return self._observe(), float(success), success, False, {"success": success}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The plane from above, ``(96, 96, 3)`` uint8: the goal's disc in green, the point in blue."""
        if self.render_mode != "rgb_array":
            return None
        size = 96
        x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(1, -1, size))
        frame = np.full((size, size, 3), 245, np.uint8)
        for centre, radius, colour in (
            (self._goal, self.RADIUS, (91, 140, 58)),
            (self._position, 0.06, (11, 110, 143)),
        ):
            frame[np.hypot(x - centre[0], y - centre[1]) <= radius] = colour
        return frame

    def _observe(self) -> np.ndarray:
        return np.concatenate([self._position, self._goal]).astype(np.float32)


def _clip(value: float) -> float:
    return min(1.0, max(-1.0, value))


def register() -> None:
    """Make ``gymnasium.make("dsrl/PointReach-v0")`` work; calling it again changes nothing."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(ENV_ID, entry_point="dsrl.wrappers.toy:PointReach", max_episode_steps=MAX_EPISODE_STEPS)


# on import, so that `gymnasium.make("dsrl.wrappers.toy:dsrl/PointReach-v0")` works in a fresh worker process too
register()
