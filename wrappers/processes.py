"""A process per simulator, whose failures arrive as messages."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from dsrl.errors import DsrlError, SimulatorFailed

_FAILURE = "dsrl/failure"
_GRACE = 60
"""seconds that a simulator goes on for its parent after SIGTERM"""


class SimulatorProcesses(SubprocVecEnv):
    """A ``SubprocVecEnv`` that raises what a simulator raised, instead of losing the process and its reason.

    Args:
        env_fns: one for each process.
        timeout: seconds after which a simulator that does not answer is given up; building it may take longer.

    Raises:
        DsrlError: when an environment cannot be built, with its own words.
        SimulatorFailed: from any call, when a simulator failed, or its process died or hangs.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], timeout: float = 300.0):
        # forkserver: a fork of a process that already runs torch threads can dead-lock
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        with _naming_the_dead():
            super().__init__([partial(_make_in_worker, env_fn) for env_fn in env_fns], start_method=method)
            # before multiprocessing itself asks them to end, and waits; not in a fork of this process
            Finalize(self, _kill, args=(self.processes,), exitpriority=10)
            failures = [failure for failure in self.get_attr("failure") if failure]
        if failures:
            self.close()
            message, trace, expected = failures[0]
            kind = DsrlError if expected else SimulatorFailed
            raise kind(message) from RuntimeError(f"in the process of a simulator:\n{trace}")
        ends = zip(self.remotes, self.processes, strict=True)
        self.remotes = tuple(_Patient(*end, index, timeout) for index, end in enumerate(ends))

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
        """End the processes, also those that hang or whose neighbours have died."""
        if self.closed:
            return
        try:
            if any(remote.gave_up for remote in self.remotes if isinstance(remote, _Patient)):
                raise TimeoutError
            super().close()
        except (EOFError, OSError):
            _kill(self.processes)
            self.closed = True


class _Patient:
    """The end of a pipe that waits for an answer so long and no longer, and not for the dead."""

    def __init__(self, remote: Any, process: Any, index: int, timeout: float):
        self.remote, self.process, self.index, self.timeout = remote, process, index, timeout
        self.gave_up = False

    def recv(self) -> Any:
        # a forked neighbour holds the pipe open too, so that its end alone does not tell that a process died
        if not wait([self.remote, self.process.sentinel], self.timeout):
            self.gave_up = True
            raise _NoAnswer(self.index, self.timeout)
        if not self.remote.poll():
            raise EOFError
        return self.remote.recv()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.remote, name)


class _NoAnswer(TimeoutError):
    def __init__(self, index: int, timeout: float):
        super().__init__(
            f"simulator {index} has not answered for {timeout:g} s and is given up; if its steps may take longer, "
            "raise --simulator-timeout"
        )


def _kill(processes: Iterable[Any]) -> None:
    """One that hangs does not hear anything else."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


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
    # Ctrl-C and SIGTERM, which may reach every process of a job, are the parent's, who saves before it closes
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
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
    except _NoAnswer as error:
        raise SimulatorFailed(str(error)) from error
    except (EOFError, ConnectionError) as error:
        raise SimulatorFailed(
            "the process of a simulator died; what it said last stands above. Without a word it was killed, "
            "mostly for want of memory: use fewer environments"
        ) from error
