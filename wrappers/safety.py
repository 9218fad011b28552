"""The layer between chunks and a robot: limits, bounded jumps, a latency budget, an abort."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dsrl.errors import DsrlError, SimulatorFailed
from dsrl.safety import SafetyConfig
from dsrl.wrappers.chunk import ActionChunk

MOST_EMPTY = 20
"""episodes in a row that may end before their first action"""
_POLL = 0.2


class Abort:
    """Says whether somebody wants the episode to end: a file, Enter in the terminal, or a function.

    Raises:
        DsrlError: when there is no terminal for the key.
    """

    def __init__(self, config: SafetyConfig, asked: Callable[[], bool] | None = None):
        if config.abort_key and not sys.stdin.isatty():
            raise DsrlError(
                "--safety.abort-key reads the terminal, which this process has none of; use --safety.abort-file, "
                "or one environment in the process itself (--n-envs 1)"
            )
        self._file, self._key, self._asked = config.abort_file, config.abort_key, asked

    def __call__(self) -> bool:
        """Now; a pressed key is told once."""
        return self.stands() or self._pressed()

    def stands(self) -> bool:
        """Whether it lasts: the file is still there."""
        there = self._file is not None and os.path.exists(self._file)
        return there or (self._asked is not None and self._asked())

    def _pressed(self) -> bool:
        pressed = False
        while self._key and select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():  # the terminal is gone
                self._key = False
            pressed = True
        return pressed


class Abortable(gym.Wrapper):
    """Below the chunks: an abort ends the episode as truncated after the env step that is under way."""

    def __init__(self, env: gym.Env, abort: Abort):
        super().__init__(env)
        self._abort = abort

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, then ask."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated) and self._abort():
            return obs, reward, terminated, True, {**info, "aborted": True}
        return obs, reward, terminated, truncated, info


class SafeChunks(gym.Wrapper):
    """Above :class:`~dsrl.wrappers.chunk.ActionChunk`: brings every chunk within the limits, or ends the episode.

    ``info["executed"]`` is the chunk as it was played, which is what a learner of chunks has to keep, and
    ``info["safety"]`` counts what was held back: ``actions limited refused jumps late aborted``, and the ``latency`` in
    seconds. A decision that is refused before its first action has the ``chunk_length`` 0.

    With ``on_limit`` ``clip`` the action space is the limits themselves, so that chunks are also rated within them.
    """

    def __init__(
        self, env: ActionChunk, config: SafetyConfig, abort: Abort, clock: Callable[[], float] = time.perf_counter
    ):
        super().__init__(env)
        self._chunks = env
        self.config, self._abort, self._clock = config, abort, clock
        box = env.action_space
        assert isinstance(box, spaces.Box)
        self._low, self._high = config.limits(box.low[0], box.high[0])
        self._jump = config.jump(box.shape[1])
        if config.on_limit == "clip":
            low, high = (np.tile(limit, (box.shape[0], 1)) for limit in (self._low, self._high))
            self.action_space = spaces.Box(low, high, dtype=np.float32)
        self._since, self._empty = 0.0, 0
        self._obs: Any = None
        self._last: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode, once nobody aborts any more."""
        if self._abort.stands():
            print("dsrl: aborted; the next episode waits until the abort is taken back", file=sys.stderr, flush=True)
            while self._abort.stands():
                time.sleep(_POLL)
        self._obs, info = self.env.reset(seed=seed, options=options)
        self._last = None
        self._since = self._clock()
        return self._obs, info

    def step(self, action: np.ndarray) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Play what is safe of ``(n_action_steps, action_dim)``.

        Raises:
            SimulatorFailed: when no episode gets to its first action any more, or an action is not finite.
        """
        report: dict[str, Any] = dict.fromkeys(("actions", "limited", "refused", "jumps", "late", "aborted"), 0)
        report["latency"] = self._clock() - self._since
        report["late"] = int(self.config.latency is not None and report["latency"] > self.config.latency)
        chunk = self._admitted(np.asarray(action, np.float32), report)
        stop = self._abort()
        report["aborted"] = int(stop or (report["late"] and self.config.on_late == "abort"))
        allowed = 0 if report["aborted"] else self._first_refused(chunk, report)
        if not allowed:
            return self._nothing(chunk, report)
        obs, reward, terminated, truncated, info = self.env.step(chunk[:allowed])
        self._empty, self._obs = 0, obs
        self._last = chunk[info["chunk_length"] - 1]
        report["actions"] = info["chunk_length"]
        report["aborted"] = int(info.get("aborted", False))
        if info["chunk_length"] < allowed or terminated or truncated:
            report["refused"] = 0  # it ended before
        elif report["refused"]:
            truncated = True
            info |= self._chunks.ending()
        self._since = self._clock()
        return obs, reward, terminated, truncated, {**info, "executed": chunk, "safety": report}

    def _admitted(self, chunk: np.ndarray, report: dict[str, Any]) -> np.ndarray:
        """Held where it is late, clipped, and led on from the last action."""
        if not np.isfinite(chunk).all():
            raise SimulatorFailed(f"the policy decided on an action that is not finite: {chunk.tolist()!s:.120}")
        if report["late"] and self.config.on_late == "hold" and self._last is not None:
            return np.tile(self._last, (len(chunk), 1))
        # of the environment, and with on_limit clip of the robot too
        decided, chunk = chunk, self._clip(chunk)
        report["limited"] = int((decided != chunk).any(axis=1).sum())
        if self._last is not None and (np.abs(chunk[0] - self._last) > self._jump).any():
            report["jumps"] = 1
            lead = blended if self.config.on_jump == "blend" else caught_up
            chunk = self._clip(lead(chunk, self._last, self._jump))
        return chunk

    def _clip(self, chunk: np.ndarray) -> np.ndarray:
        box: Any = self.action_space
        return np.clip(chunk, box.low, box.high)

    def _first_refused(self, chunk: np.ndarray, report: dict[str, Any]) -> int:
        """How many actions may be played."""
        if self.config.on_limit != "refuse":
            return len(chunk)
        outside = ((chunk < self._low) | (chunk > self._high)).any(axis=1)
        report["refused"] = int(outside.any())
        return int(outside.argmax()) if outside.any() else len(chunk)

    def _nothing(self, chunk: np.ndarray, report: dict[str, Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The episode ends before this chunk."""
        self._empty = self._empty + 1 if self._last is None else 0
        if self._empty >= MOST_EMPTY:
            raise SimulatorFailed(
                f"the last {MOST_EMPTY} episodes ended before their first action: the chunks are refused or late. "
                "Widen --safety.low and --safety.high or --safety.latency, or take --safety.on-limit clip"
            )
        info = {"chunk_length": 0, "executed": chunk, "safety": report, **self._chunks.ending()}
        return self._obs, 0.0, False, True, info


def caught_up(chunk: np.ndarray, last: np.ndarray, jump: np.ndarray) -> np.ndarray:
    """From ``last`` at most ``jump`` per env step, ``(Da,)`` each, until the chunk ``(Ta, Da)`` is reached."""
    result, behind = chunk.copy(), np.ones(len(last), bool)
    for row, wanted in enumerate(chunk):
        allowed = np.clip(wanted, last - jump, last + jump)
        behind &= allowed != wanted
        if not behind.any():
            break
        result[row] = last = np.where(behind, allowed, wanted)
    return result


def blended(chunk: np.ndarray, last: np.ndarray, jump: np.ndarray) -> np.ndarray:
    """The chunk ``(Ta, Da)``, shifted so that it begins within ``jump`` of ``last``, by less and less to its end."""
    shift = np.clip(chunk[0], last - jump, last + jump) - chunk[0]
    fading = 1 - np.arange(len(chunk), dtype=np.float32) / len(chunk)
    return chunk + fading[:, None] * shift
