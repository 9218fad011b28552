"""One env step from an observation alone, in environments whose observation says what their state is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dsrl.env_spec import EnvSpec
from dsrl.wrappers.make import make_env

Restore = Callable[[Any, np.ndarray], None]
"""Brings the bare environment into the state that was observed as ``(Do,)``."""


class OneStep:
    """``(N, Do), (N, Da)`` -> next observations ``(N, Do)``, rewards ``(N,)``, terminations ``(N,)``.

    Args:
        spec: the environment.
        reward: convention of rewards and terminations.
        restore: of that environment.
    """

    def __init__(self, spec: EnvSpec, reward: str, restore: Restore):
        self.env = make_env(spec, reward=reward)
        self.restore = restore
        adapter: Any = self.env.unwrapped
        self._bare = adapter.simulator.unwrapped
        self.obs_dim = int(np.prod(self.env.observation_space.shape or (1,)))

    def __call__(self, obs: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every row for itself; actions are clipped to their limits."""
        box: Any = self.env.action_space
        following, rewards, ends = np.empty_like(obs), np.empty(len(obs)), np.empty(len(obs), bool)
        for row in range(len(obs)):
            self.env.reset(seed=0)
            self.restore(self._bare, np.asarray(obs[row], np.float64))
            step = self.env.step(np.clip(action[row], box.low, box.high))
            following[row], rewards[row], ends[row] = step[0], step[1], step[2]
        return following, rewards, ends

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def one_step(spec: EnvSpec | None, reward: str) -> OneStep | None:
    """Of an environment that is known to allow it, else None."""
    from dsrl.wrappers.generic import GenericEnv

    if spec is None or spec.family != "gymnasium":
        return None
    probe = make_env(spec, reward=reward)
    adapter: Any = probe.unwrapped
    kind = type(adapter.simulator.unwrapped).__name__ if isinstance(adapter, GenericEnv) else ""
    probe.close()
    return OneStep(spec, reward, _RESTORE[kind]) if kind in _RESTORE else None


# -- states -----------------------------------------------------------------------------------------------------------


def _point(env: Any, obs: np.ndarray) -> None:
    env._position[:], env._goal[:] = obs[:2], obs[2:]


def _pendulum(env: Any, obs: np.ndarray) -> None:
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]])


def _planar(env: Any, obs: np.ndarray) -> None:
    """The distance along the track is not observed, and changes nothing."""
    n = env.model.nq - 1
    env.set_state(np.concatenate([[0.0], obs[:n]]), obs[n : n + env.model.nv])


def _pole(env: Any, obs: np.ndarray) -> None:
    env.set_state(obs[: env.model.nq], obs[env.model.nq :])


def _double_pole(env: Any, obs: np.ndarray) -> None:
    """Observed are the cart, sines and cosines of both joints, velocities, and forces of constraint."""
    env.set_state(np.array([obs[0], np.arctan2(obs[1], obs[3]), np.arctan2(obs[2], obs[4])]), obs[5:8])


def _reacher(env: Any, obs: np.ndarray) -> None:
    """Cosines and sines of both joints, target, velocities of the joints, distance; the target stands still."""
    joints = np.arctan2(obs[2:4], obs[0:2])
    env.set_state(np.concatenate([joints, obs[4:6]]), np.concatenate([obs[6:8], np.zeros(2)]))


# not Walker2d: its observation clips velocities that falling reaches
_RESTORE: dict[str, Restore] = {
    "PointReach": _point,
    "PendulumEnv": _pendulum,
    "HopperEnv": _planar,
    "HalfCheetahEnv": _planar,
    "InvertedPendulumEnv": _pole,
    "InvertedDoublePendulumEnv": _double_pole,
    "ReacherEnv": _reacher,
}
