"""Meta-World v3 single tasks as gymnasium environments whose seeds are exact."""

from __future__ import annotations

from dataclasses import replace
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

DEFAULT_STEPS = {"pick-place-v3": 120, "push-v3": 120, "reach-v3": 100}
_OBS_DIM = 39


def tasks() -> tuple[str, ...]:
    """The names of all tasks; none when Meta-World is not installed."""
    if find_spec("metaworld") is None:
        return ()
    from metaworld.env_dict import ENV_CLS_MAP

    return tuple(ENV_CLS_MAP)


def resolve(spec: EnvSpec) -> EnvSpec:
    """Fill in the time limit and the version.

    Raises:
        DsrlError: when the task is unknown or Meta-World is not installed.
    """
    if find_spec("metaworld") is None:
        raise DsrlError("Meta-World environments need the extra: pip install 'dsrl-steering[metaworld]'")
    known = tasks()
    if spec.name not in known:
        raise DsrlError(f"Meta-World has no task '{spec.name}'.{nearest(spec.name, known)} Known: {', '.join(known)}")
    if len(spec.obs_keys) > 1:
        raise DsrlError(f"{spec.id} observes one vector, 'state'; it has no keys {list(spec.obs_keys)}")
    return replace(
        spec,
        max_episode_steps=spec.max_episode_steps or DEFAULT_STEPS.get(spec.name, 150),
        version=spec.version or version("metaworld"),
    )


class MetaWorldEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One Meta-World task with a visible goal: 39 numbers in, 4 actions, ``info["success"]`` at every step.

    Meta-World's own ids ignore ``reset(seed=...)`` and walk one fixed list of 50 starts in every copy. Here every
    episode follows from one integer, as in :class:`dsrl.wrappers.robosuite.RobosuiteEnv`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012

    def __init__(self, spec: EnvSpec, render_mode: str | None = None) -> None:
        self.env_spec = resolve(spec)
        self.render_mode = render_mode
        self.simulator = _make_simulator(self.env_spec, render_mode)
        self.obs_shapes = {key: (_OBS_DIM,) for key in self.env_spec.obs_keys or ("state",)}
        self.observation_space = spaces.Box(-np.inf, np.inf, (_OBS_DIM,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.raw_obs = np.zeros(_OBS_DIM)
        """the last observation in the simulator's precision; the scripted policies read it"""
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode that ``seed`` names, or the next one of this environment's own stream."""
        super().reset(seed=seed)
        self.simulator.seed(int(self.np_random.integers(2**31)))
        self.raw_obs, _ = self.simulator.reset()
        self._steps = 0
        return self.raw_obs.astype(np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; the simulator's own reward, and no end: the time limit is a wrapper.

        Raises:
            SimulatorFailed: when the physics breaks down.
        """
        self._steps += 1
        try:
            self.raw_obs, reward, _, _, info = self.simulator.step(np.asarray(action, dtype=np.float32))
        except Exception as error:
            raise SimulatorFailed(f"{self.env_spec.id} failed at step {self._steps}: {error}") from error
        if not np.isfinite(self.raw_obs).all():
            raise SimulatorFailed(f"{self.env_spec.id} became unstable at step {self._steps}: {self.raw_obs}")
        return self.raw_obs.astype(np.float32), float(reward), False, False, {**info, "success": bool(info["success"])}

    def render(self) -> Any:
        """An upright RGB frame of the ``corner2`` camera (``options["camera"]`` names another)."""
        frame = self.simulator.render()
        if frame is None or not self.simulator.camera_name.startswith("corner"):
            return frame
        return np.ascontiguousarray(frame[::-1, ::-1])  # these cameras are mounted upside down

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()


def _make_simulator(spec: EnvSpec, render_mode: Any) -> Any:
    from metaworld.env_dict import ENV_CLS_MAP

    kwargs = {"camera_name": spec.options.get("camera", "corner2"), **spec.kwargs} if render_mode else dict(spec.kwargs)
    try:
        env: Any = ENV_CLS_MAP[spec.name](render_mode=render_mode, **kwargs)
    except TypeError as error:
        raise DsrlError(f"{spec.id} does not accept these arguments: {error}") from error
    env._partially_observable = False  # the goal is part of the observation
    env.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True  # draw the start from the seeded generator, not from numpy's global one
    env._set_task_called = True  # its list of tasks is not used
    env.max_path_length = np.inf  # it would refuse step 501
    return env


def make(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    """The task with its time limit."""
    assert spec.max_episode_steps is not None
    return TimeLimit(MetaWorldEnv(spec, render_mode), spec.max_episode_steps)


FAMILY = Family("metaworld", "tasks of Meta-World with a visible goal", resolve, make, own_process=False)
