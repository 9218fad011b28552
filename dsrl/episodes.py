"""What happened in every episode of an evaluation, and the small file that keeps it."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsrl.errors import DsrlError
from dsrl.files import replacing

MEASURES = ("success", "held", "returns", "lengths", "jerk")
_ARRAYS = ("seeds", "starts", "columns", "policies", *MEASURES)


class Recorder:
    """Fills in ``N`` episodes while they are played side by side.

    Args:
        episodes: N.
        low, high: limits of the environment's actions, ``(Ta, Da)``; what is played is clipped to them.
        shown: which numbers of an observation are kept of an episode's first one.
    """

    def __init__(self, episodes: int, low: np.ndarray, high: np.ndarray, shown: np.ndarray):
        self.low, self.high, self.shown = low, high, shown
        self.success, self.held = np.zeros(episodes, bool), np.zeros(episodes, bool)
        self.returns, self.lengths = np.zeros(episodes), np.zeros(episodes, int)
        self.jerk = np.full(episodes, np.nan)
        self.starts = np.full((episodes, len(shown)), np.nan, np.float32)
        self.decisions: list[float] = []
        self._played: dict[int, list[np.ndarray]] = {}

    def begin(self, episode: int, obs: np.ndarray) -> None:
        """The first observation of an episode, ``(To, Do)``."""
        self._played[episode] = []
        self.starts[episode] = obs[-1][self.shown]

    def step(self, episode: int, chunk: np.ndarray, reward: float, done: bool, info: Mapping[str, Any]) -> None:
        """One decision of an episode, and whether it ended."""
        length = info["chunk_length"]
        # where limits stand before the simulator, they say what was played
        self._played[episode].append(np.clip(info.get("executed", chunk), self.low, self.high)[:length])
        self.returns[episode] += reward
        self.lengths[episode] += length
        if done:
            self.success[episode] = info.get("is_success", False)
            self.held[episode] = info.get("success_held", False)
            self.jerk[episode] = jerk(np.concatenate(self._played.pop(episode)))


def jerk(actions: np.ndarray) -> float:
    """Mean square of the second differences of executed actions ``(T, Da)``; NaN for fewer than three.

    Where an action is a velocity, that is the jerk of the motion in action units; an episode's chunks count as one
    sequence, so a jump from one to the next counts too.
    """
    return float(np.square(np.diff(actions, n=2, axis=0)).mean()) if len(actions) > 2 else float("nan")


def low_dimensional(obs_shapes: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Where the numbers that are no pixels stand in a concatenated observation, and their names, ``object[3]``."""
    where: list[int] = []
    names: list[str] = []
    start = 0
    for key, shape in obs_shapes.items():
        size = int(np.prod(shape, dtype=int))
        if len(shape) < 2:
            where += range(start, start + size)
            names += [f"{key}[{i}]" for i in range(size)]
        start += size
    return np.array(where, dtype=int), tuple(names)


@dataclass(frozen=True)
class Episodes:
    """Results of ``P`` policies on the same ``N`` initial states."""

    seeds: np.ndarray
    """``(N,)``: of the initial states"""
    starts: np.ndarray
    """``(N, D)``: the first observations, without images"""
    columns: tuple[str, ...]
    """what the D numbers are"""
    policies: tuple[str, ...]
    success: np.ndarray
    """``(P, N)``, as all that follow"""
    held: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    jerk: np.ndarray

    def of(self, policy: str, measure: str = "success") -> np.ndarray:
        """``(N,)``: one measure of one policy."""
        return getattr(self, measure)[self.policies.index(policy)]

    def save(self, path: Path) -> None:
        """Write a ``.npz`` without pickles.

        Raises:
            RunFailed: when it cannot be written.
        """
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> Episodes:
        """Read what :meth:`save` wrote.

        Raises:
            DsrlError: when the file is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DsrlError(
                f"{path} does not hold the episodes of a comparison ({error}); `dsrl evaluate RUN --json "
                "RUN/comparison.json` writes them anew"
            ) from error
        words = {name: tuple(map(str, values[name])) for name in ("columns", "policies")}
        found = cls(**{**values, **words})  # type: ignore[arg-type]
        found._check(path)
        return found

    def _check(self, path: Path) -> None:
        n, policies = len(self.seeds), len(self.policies)
        expected: Sequence[tuple[int, ...]] = [(n, len(self.columns)), *[(policies, n)] * len(MEASURES)]
        shapes = [getattr(self, name).shape for name in ("starts", *MEASURES)]
        if shapes != list(expected):
            raise DsrlError(f"{path} holds episodes of the shapes {shapes}, expected {list(expected)}")


def episodes_path(comparison: Path) -> Path:
    """``comparison.json`` -> ``comparison_episodes.npz``, beside it."""
    return comparison.with_name(f"{comparison.stem}_episodes.npz")
