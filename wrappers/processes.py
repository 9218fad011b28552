"""A process per simulator, whose failures arrive as messages."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrl.errors import DsrlError, SimulatorFailed

_FAILURE = "dsrl/failure"


class SimulatorProcesses(SubprocVecEnv):
    """A ``SubprocVecEnv`` that raises what a simulator raised, instead of losing the process and its reason.

    Raises:
        DsrlError: when an environment cannot be built, with its own words.
        SimulatorFailed: from any call, when a simulator failed or its process died.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]):
        # forkserver: a fork of a process that already runs torch threads can dead-lock
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        with _naming_the_dead():
            super().__init__([partial(_make_in_worker, env_fn) for env_fn in env_fns], start_method=method)
            failures = [failure for failure in self.get_attr("failure") if failure]
        if failures:
            self.close()
            message, trace, expected = failures[0]
            kind = DsrlError if expected else SimulatorFailed
            raise kind(message) from RuntimeError(f"in the process of a simulator:\n{trace}")

    def reset(self) -> VecEnvObs:
        """Reset all environments."""
        with _naming_the_dead():
            obs = super().reset()
        _raise_failures(self.reset_infos)
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions."""
        with _naming_the_dead():
            super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Receive what they led to."""
        with _naming_the_dead():
            result = super().step_wait()
        _raise_failures((*result[3], *self.reset_infos))
        return result

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environments."""
        with _naming_the_dead():
            return super().env_method(method_name, *args, indices=indices, **kwargs)

    def close(self) -> None:
        """End the processes, also those whose neighbours have died."""
        if self.closed:
            return
        try:
            super().close()
        except (EOFError, OSError):
            for process in self.processes:
                process.terminate()
                process.join()
            self.closed = True


class _ReportFailures(gym.Wrapper):
    """Turns an exception into a word to the parent: an uncaught one would end the process and its reason with it."""

    failure = None
    """of building it"""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(**kwargs)
        except Exception as error:
            return self._nothing(), _report(error)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception as error:
            return self._nothing(), 0.0, False, False, _report(error)

    def _nothing(self) -> np.ndarray:
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype)


class _Stillborn(gym.Env):
    """Stands for an environment that could not be built, until the parent has read why."""

    observation_space = action_space = gym.spaces.Discrete(1)

    def __init__(self, failure: tuple[str, str, bool]):
        self.failure = failure


def _make_in_worker(env_fn: Callable[[], gym.Env]) -> gym.Env:
    # Ctrl-C is the parent's, who saves before it closes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return _ReportFailures(env_fn())
    except Exception as error:
        return _Stillborn((*_words(error), isinstance(error, DsrlError)))


def _report(error: Exception) -> dict[str, Any]:
    return {_FAILURE: _words(error)}


def _words(error: Exception) -> tuple[str, str]:
    return str(error) or type(error).__name__, traceback.format_exc()


def _raise_failures(infos: Iterable[Mapping[str, Any] | None]) -> None:
    for info in infos:
        if info and _FAILURE in info:
            message, trace = info[_FAILURE]
            raise SimulatorFailed(message) from RuntimeError(f"in the process of a simulator:\n{trace}")


@contextmanager
def _naming_the_dead() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise SimulatorFailed(
            "the process of a simulator died; what it said last stands above. Without a word it was killed, "
            "mostly for want of memory: use fewer environments"
        ) from error
