"""Recorded experience: trajectories, robomimic HDF5 files, and the windows that behaviour cloning reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsrl.env_spec import EnvSpec


@dataclass(frozen=True)
class Trajectory:
    """One episode of ``T`` env steps, in environment units."""

    obs: Mapping[str, np.ndarray]
    """``key -> (T, *shape)``, before each action"""
    next_obs: Mapping[str, np.ndarray]
    """``key -> (T, *shape)``, after each action; the last one is the true last observation"""
    actions: np.ndarray
    """``(T, Da)``"""
    rewards: np.ndarray
    """``(T,)``"""
    terminated: np.ndarray
    """``(T,)`` bool; a time limit is not a termination"""
    success: bool = False

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Trajectories:
    """Episodes that share one observation layout."""

    episodes: tuple[Trajectory, ...]
    obs_shapes: Mapping[str, tuple[int, ...]]
    """in the order of concatenation"""
    env: EnvSpec | None = None


def write_hdf5(path: Path, data: Trajectories) -> None:
    """Write a robomimic HDF5 file (``data/demo_i/{obs,next_obs,actions,rewards,dones}``, ``env_args``, ``mask``)."""
    raise NotImplementedError


def read_hdf5(path: Path) -> Trajectories:
    """Read a robomimic HDF5 file, low-dimensional keys only."""
    raise NotImplementedError
