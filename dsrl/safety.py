"""Limits that a robot must not leave, whatever a policy decides, and what was held back by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dsrl.errors import DsrlError
from dsrl.limits import within


@dataclass(frozen=True)
class SafetyConfig:
    """What stands between the policy and a robot; nothing, when nothing is given."""

    low: tuple[float, ...] = ()
    """lowest action, in environment units: one number, or one per dimension; left out: what the environment allows"""
    high: tuple[float, ...] = ()
    """highest action"""
    on_limit: Literal["clip", "refuse"] = "clip"
    """an action beyond a limit is clipped, or refused: the episode ends before it, as truncated"""
    max_jump: tuple[float, ...] = ()
    """how far the first action of a chunk may lie from the action executed before it: one number, or one per dimension;
    inf leaves a dimension, such as a gripper, free"""
    on_jump: Literal["clip", "blend"] = "clip"
    """clip: at most this far per env step until the chunk is caught up with; blend: the chunk is shifted to within the
    bound, by less and less towards its end"""
    latency: float | None = None
    """seconds that a decision may take, from the observation to the chunk, whatever else is computed in between"""
    on_late: Literal["count", "hold", "abort"] = "count"
    """a late chunk is played and counted; or dropped, while the last executed action is held; or ends the episode"""
    abort_file: Path | None = None
    """while this file is there, the episode ends as truncated, and the next one waits"""
    abort_key: bool = False
    """Enter in the terminal ends the episode as truncated"""

    def __post_init__(self) -> None:
        for name in ("low", "high", "max_jump"):
            if any(np.isnan(getattr(self, name))):
                raise DsrlError(f"--safety.{name.replace('_', '-')} is {getattr(self, name)}; expected numbers")
        if self.max_jump and min(self.max_jump) <= 0:
            raise DsrlError(f"--safety.max-jump is {self.max_jump}; it is a distance above 0, inf for no bound")
        within(self, "(0, inf)", "latency", prefix="safety.")
        if self.on_late != "count" and self.latency is None:
            raise DsrlError(f"--safety.on-late is '{self.on_late}', but no decision is late; give --safety.latency too")
        if self.on_limit != "clip" and not (self.low or self.high):
            raise DsrlError("--safety.on-limit refuse needs a limit; give --safety.low and --safety.high too")

    @property
    def active(self) -> bool:
        """Whether anything is limited or watched."""
        return bool(self.low or self.high or self.max_jump or self.latency or self.abort_file or self.abort_key)

    def limits(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The limits ``(Da,)`` within those of the environment, ``low`` and ``high``.

        Raises:
            DsrlError: when there are too many of them, or nothing is left between them.
        """
        lowest = np.maximum(low, self._per_dimension("low", len(low), -np.inf))
        highest = np.minimum(high, self._per_dimension("high", len(low), np.inf))
        if (lowest > highest).any():
            where = int(np.argmax(lowest > highest))
            raise DsrlError(
                f"--safety.low and --safety.high leave nothing of the actions of dimension {where}: the environment "
                f"allows [{low[where]:g}, {high[where]:g}], the limits [{lowest[where]:g}, {highest[where]:g}]"
            )
        return lowest.astype(np.float32), highest.astype(np.float32)

    def jump(self, action_dim: int) -> np.ndarray:
        """``(Da,)``: infinite where nothing is bounded.

        Raises:
            DsrlError: when it has another number of dimensions.
        """
        return self._per_dimension("max_jump", action_dim, np.inf)

    def _per_dimension(self, name: str, size: int, nothing: float) -> np.ndarray:
        values = getattr(self, name) or (nothing,)
        if len(values) not in (1, size):
            raise DsrlError(
                f"--safety.{name.replace('_', '-')} has {len(values)} numbers, the environment's actions have {size}; "
                "give one number for all of them, or one for each"
            )
        return np.broadcast_to(np.asarray(values, np.float32), (size,))


class SafetyTally:
    """Counts what the safety layer reported in ``info["safety"]``."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("decisions", "actions", "limited", "refused", "jumps", "late", "aborted"), 0)
        self.slowest = 0.0
        """seconds of the slowest decision"""

    def add(self, infos: Iterable[Mapping[str, Any]]) -> None:
        """The infos of one step of every environment."""
        for info in infos:
            report = info.get("safety")
            if report is None:
                continue
            self.counts["decisions"] += 1
            for name in report.keys() & self.counts.keys():
                self.counts[name] += int(report[name])
            self.slowest = max(self.slowest, float(report["latency"]))

    @property
    def violations(self) -> int:
        """All that was held back."""
        return sum(self.counts[name] for name in ("limited", "refused", "jumps", "late", "aborted"))

    def describe(self) -> str:
        """In one line."""
        counts = self.counts
        return (
            f"safety: {counts['limited']} of {counts['actions']} actions limited, {counts['refused']} refused; of "
            f"{counts['decisions']} decisions {counts['jumps']} jumped and {counts['late']} were late (slowest "
            f"{1e3 * self.slowest:.0f} ms); {counts['aborted']} episodes aborted"
        )
