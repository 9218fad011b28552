"""OGBench's state-based tasks as gymnasium environments whose seeds are exact, with the goal in the observation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, SimulatorFailed, nearest
from dsrl.wrappers.families import Family
from dsrl.wrappers.observations import missing

STATE, GOAL = "state", "goal"


@cache
def tasks() -> tuple[str, ...]:
    """The names of all tasks that observe a state, without ``-v0``; none when OGBench is not installed."""
    if find_spec("ogbench") is None:
        return ()
    import ogbench  # noqa: F401 - registers them

    kinds = ("ogbench.locomaze.", "ogbench.manipspace.")
    known = (name for name, entry in gymnasium.registry.items() if str(entry.entry_point).startswith(kinds))
    return tuple(name.removesuffix("-v0") for name in known if not name.startswith("visual-"))


def resolve(spec: EnvSpec) -> EnvSpec:
    """Fill in the observation keys, the time limit and the version.

    Raises:
        DsrlError: when the task or a key is unknown, or OGBench is not installed.
    """
    if find_spec("ogbench") is None:
        raise DsrlError("OGBench environments need the extra: pip install 'dsrl-steering[ogbench]'")
    known = tasks()
    if spec.name not in known:
        raise DsrlError(f"OGBench has no task '{spec.name}'.{nearest(spec.name, known)} `-v0` is left out")
    keys = (STATE,) if has_one_task(spec) else (STATE, GOAL)
    for key in spec.obs_keys:
        if key not in keys:
            raise missing(spec.id, key, spec.obs_keys, keys)
    limit = gymnasium.spec(f"{spec.name}-v0").max_episode_steps
    return replace(
        spec,
        obs_keys=spec.obs_keys or keys,
        max_episode_steps=spec.max_episode_steps or limit,
        version=spec.version or version("ogbench"),
    )


def has_one_task(spec: EnvSpec) -> bool:
    """Whether the goal is always the same one, and therefore no part of the observation."""
    return "singletask" in spec.name.split("-")


class OGBenchEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One OGBench task: ``state`` and, where there are several goals, ``goal`` in, ``info["success"]`` at every step.

    Goals are OGBench's oracle representations, in a maze the position to reach. An episode of a goal-conditioned task
    is one of the five that OGBench evaluates on, which its seed draws; ``options["task"]``, 1 to 5, fixes it.

    OGBench draws starts, goals and teleports from numpy's global generator. Here each environment lends it one of its
    own, so every episode follows from one integer, as in :class:`dsrl.wrappers.robosuite.RobosuiteEnv`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(self, spec: EnvSpec, render_mode: str | None = None) -> None:
        self.env_spec = resolve(spec)
        self.render_mode = render_mode
        with _quietly():
            self.simulator = _make_simulator(self.env_spec, render_mode)
            box = self.simulator.action_space
        self._random = np.random.MT19937(0)
        self._goal = np.zeros(0, np.float32)
        self._steps = 0
        parts = self._parts(self._start(0, {}))
        self.obs_shapes = {key: parts[key].shape for key in self.env_spec.obs_keys}
        size = sum(int(np.prod(shape)) for shape in self.obs_shapes.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode that ``seed`` names, or the next one of this environment's own stream.

        Args:
            seed: of start, goal and all that is random on the way.
            options: OGBench's own, such as ``{"task_info": {"init_ij": (1, 1), "goal_ij": (7, 10)}}`` in a maze.
        """
        super().reset(seed=seed)
        state = self._start(int(self.np_random.integers(2**31)), options or {})
        return self._flat(state), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; the simulator's own reward, and no end: the time limit is a wrapper.

        Raises:
            SimulatorFailed: when the physics breaks down.
        """
        self._steps += 1
        with self._own_randomness():
            state, reward, _, _, info = self.simulator.step(np.asarray(action, dtype=np.float64))
        if not np.isfinite(state).all():
            raise SimulatorFailed(f"{self.env_spec.id} became unstable at step {self._steps}: {state}")
        return self._flat(state), float(reward), False, False, {"success": bool(info["success"])}

    def wander_to(self, ij: tuple[int, int]) -> None:
        """Put the goal of a maze into another cell; where there is but one task, the goal stays what it is."""
        with self._own_randomness():
            self.simulator.set_goal(goal_ij=ij)
        self._goal = np.asarray(self.simulator.cur_goal_xy, np.float32)

    def render(self) -> Any:
        """An RGB frame of the simulator's own camera."""
        return self.simulator.render()

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()

    def _start(self, seed: int, options: Mapping[str, Any]) -> np.ndarray:
        self._random = np.random.MT19937(seed)
        self._steps = 0
        chosen = dict(options)
        if not has_one_task(self.env_spec) and "task_info" not in chosen:
            drawn = int(self.np_random.integers(1, self.simulator.num_tasks + 1))
            chosen.setdefault("task_id", int(self.env_spec.options.get("task", drawn)))
        with self._own_randomness(), _quietly():
            state, info = self.simulator.reset(seed=seed, options=chosen)
        self._goal = np.asarray(info["goal"], np.float32)
        return state

    def _parts(self, state: np.ndarray) -> dict[str, np.ndarray]:
        return {STATE: np.asarray(state, np.float32), GOAL: self._goal}

    def _flat(self, state: np.ndarray) -> np.ndarray:
        parts = self._parts(state)
        return np.concatenate([parts[key] for key in self.env_spec.obs_keys])

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Let what draws from ``numpy.random`` draw from this environment's generator."""
        others = np.random.get_bit_generator()
        np.random.set_bit_generator(self._random)
        try:
            yield
        finally:
            np.random.set_bit_generator(others)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of OGBench's own boxes, and of the window that nobody asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(precision lowered by casting|DISPLAY environment variable)")
        yield


def _make_simulator(spec: EnvSpec, render_mode: str | None) -> Any:
    kwargs: dict[str, Any] = {"terminate_at_goal": False, **spec.kwargs}
    if not has_one_task(spec):
        kwargs.setdefault("use_oracle_rep", True)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        return gymnasium.make(f"{spec.name}-v0", disable_env_checker=True, **kwargs).unwrapped
    except TypeError as error:
        raise DsrlError(f"{spec.id} does not accept these arguments: {error}") from error


def make(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    """The task with its time limit."""
    assert spec.max_episode_steps is not None
    return TimeLimit(OGBenchEnv(spec, render_mode), spec.max_episode_steps)


FAMILY = Family("ogbench", "mazes and table-top tasks of OGBench", resolve, make, own_process=False)
