"""robosuite tasks as gymnasium environments whose seeds are exact."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
from dsrl.wrappers.observations import find_key, missing

TASKS = (
    "Lift", "PickPlaceCan", "NutAssemblySquare", "NutAssemblyRound", "NutAssembly",
    "PickPlaceMilk", "PickPlaceBread", "PickPlaceCereal", "PickPlace", "Stack", "Door", "ToolHang",
)  # fmt: skip
"""single-arm tasks that report a success; PickPlaceSingle and NutAssemblySingle choose an object in the order of a set
of strings, which differs between processes"""

OBS_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
"""robomimic's low-dimensional observations, in robomimic's order"""

DEFAULT_STEPS = {"Lift": 80, "PickPlaceCan": 140, "NutAssemblySquare": 200}
PHYSICS_TIMESTEP = 0.002
_FRAME = (256, 256)


def resolve(spec: EnvSpec) -> EnvSpec:
    """Fill robomimic's usual arguments into a spec.

    Raises:
        DsrlError: when the task is unknown or robosuite is not installed.
    """
    if spec.name not in TASKS:
        raise DsrlError(
            f"robosuite has no single-arm task '{spec.name}'.{nearest(spec.name, TASKS)} Known: {', '.join(TASKS)}"
        )
    if find_spec("robosuite") is None:
        raise DsrlError("robosuite environments need the extra: pip install 'dsrl-steering[robosuite]'")
    kwargs = {"robots": ["Panda"], "control_freq": 20, **spec.kwargs}
    options = {"physics_timestep": PHYSICS_TIMESTEP, **spec.options}
    _check_timestep(float(options["physics_timestep"]), float(kwargs["control_freq"]))
    return replace(
        spec,
        kwargs=kwargs,
        options=options,
        obs_keys=spec.obs_keys or OBS_KEYS,
        max_episode_steps=spec.max_episode_steps or DEFAULT_STEPS.get(spec.name, 300),
        version=spec.version or version("robosuite"),
    )


class RobosuiteEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One robosuite task: flat observations, delta end-effector actions, ``info["success"]`` at every step.

    Every episode follows from one integer. ``reset(seed=s)`` therefore gives the same episode in every copy and every
    process, whatever ran before; ``reset()`` draws the next integer from the environment's own generator.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, spec: EnvSpec, render_mode: str | None = None) -> None:
        self.env_spec = resolve(spec)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": int(self.env_spec.kwargs["control_freq"])}
        self._timestep = float(self.env_spec.options["physics_timestep"])
        self.simulator = _make_simulator(self.env_spec, self._timestep, render=render_mode == "rgb_array")
        self._steps = 0
        raw = self._start(0)
        self.obs_shapes = {key: self._read(raw, key).shape for key in self.env_spec.obs_keys}
        size = sum(int(np.prod(shape)) for shape in self.obs_shapes.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        low, high = self.simulator.action_spec
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode that ``seed`` names, or the next one of this environment's own stream."""
        super().reset(seed=seed)
        raw = self._start(int(self.np_random.integers(2**31)))
        return self._flat(raw), {"success": self._success()}

    def restore(self, state: np.ndarray) -> np.ndarray:
        """Put the simulator into a recorded state, robomimic's ``states[i]``: time, positions and velocities ``(S,)``.

        To be called after a ``reset``, which is what readies the controllers. Sizes of objects are not part of it.

        Returns:
            the observation there, ``(Do,)``.

        Raises:
            DsrlError: when the state belongs to another model.
        """
        env, state = self.simulator, np.asarray(state, dtype=np.float64)
        expected = 1 + env.sim.model.nq + env.sim.model.nv
        if state.shape != (expected,):
            raise DsrlError(
                f"this state of {self.env_spec.id} has {state.size} numbers, robosuite {version('robosuite')} has "
                f"{expected}; it was recorded with another robot, other objects or another version"
            )
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        for robot in env.robots:  # the redundant joint is drawn to where the arm was when its controller was built
            for arm in robot.arms:
                controller = robot.part_controllers[arm]
                controller.update_initial_joints(env.sim.data.qpos[controller.qpos_index])
                controller.reset_goal()
        env._get_observations(force_update=True)  # twice, as in _start
        return self._flat(env._get_observations(force_update=True))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One control step; the simulator's own reward, and no end: the time limit is a wrapper.

        Raises:
            SimulatorFailed: when the physics breaks down.
        """
        action = np.asarray(action, dtype=np.float64)
        self._steps += 1
        if not np.isfinite(action).all():
            raise SimulatorFailed(
                f"{self.env_spec.id} was given the action {action} at step {self._steps}; it is not finite"
            )
        try:
            _, reward, _, _ = self.simulator.step(action)
        except Exception as error:
            raise SimulatorFailed(f"{self.env_spec.id} failed at step {self._steps}: {error}") from error
        self._check_physics()
        raw = self.simulator._get_observations(force_update=True)
        return self._flat(raw), float(reward), False, False, {"success": self._success()}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """An upright RGB frame of the ``agentview`` camera (``options["camera"]`` names another)."""
        if self.render_mode != "rgb_array":
            return None
        camera = self.env_spec.options.get("camera", "agentview")
        frame = self.simulator.sim.render(camera_name=camera, height=_FRAME[0], width=_FRAME[1])
        return np.ascontiguousarray(frame[::-1])  # OpenGL draws from the bottom

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()

    def _start(self, seed: int) -> dict[str, np.ndarray]:
        """Reset the simulator to the start that ``seed`` names."""
        env = self.simulator
        # in place: robot, placement samplers and environment share this one generator object
        env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        with _macro_timestep(self._timestep):  # the reset builds new controllers, which read the macro
            env.reset()
        self._steps = 0
        # relative poses are computed from the cache of the call before: the first call still sees the last episode
        env._get_observations(force_update=True)
        return env._get_observations(force_update=True)

    def _read(self, raw: dict[str, np.ndarray], key: str) -> np.ndarray:
        name = find_key(key, raw)
        if name is None:
            known = ["object" if known == "object-state" else known for known in raw]
            raise missing(self.env_spec.id, key, self.env_spec.obs_keys, known)
        return np.atleast_1d(np.asarray(raw[name], dtype=np.float32))

    def _flat(self, raw: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([self._read(raw, key).ravel() for key in self.env_spec.obs_keys])

    def _success(self) -> bool:
        return bool(self.simulator._check_success())

    def _check_physics(self) -> None:
        # on a diverging state MuJoCo only warns and resets itself in the middle of the episode
        import mujoco

        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        if any(self.simulator.sim.data._data.warning[int(kind)].number for kind in kinds):
            raise SimulatorFailed(
                f"{self.env_spec.id} became unstable at step {self._steps} "
                f"(physics_timestep {self._timestep}); a smaller physics_timestep is safer"
            )


def _make_simulator(spec: EnvSpec, timestep: float, render: bool) -> Any:
    suite = _import_quietly()
    kwargs: dict[str, Any] = {"seed": 0, **spec.kwargs}  # object sizes are drawn here: the same in every copy
    kwargs = _modern_controllers(kwargs)
    kwargs |= {
        "has_renderer": False,
        "has_offscreen_renderer": render,
        "use_camera_obs": False,
        "use_object_obs": True,
        "ignore_done": True,  # the time limit is a wrapper's business
        "hard_reset": False,  # a hard reset takes seconds and draws new object sizes
    }
    try:
        with _macro_timestep(timestep):
            env = suite.make(env_name=spec.name, **kwargs)
    except Exception as error:  # a wrong argument fails wherever it is read
        raise DsrlError(
            f"robosuite {version('robosuite')} does not accept the arguments of {spec.id}: "
            f"{type(error).__name__}: {error}; they are {kwargs}"
        ) from error
    _update_observables_once_per_step(env)
    return env


def _update_observables_once_per_step(env: Any) -> None:
    """Read the sensors when an observation is asked for, not after every physics step.

    At 0.002 s this is what robosuite shows. At 0.005 s rounding puts the sensors' own timers out of step, and they
    would show the state of up to a control step ago.
    """
    update = env._update_observables
    env._update_observables = lambda force=False: update(force=True) if force else None


def _modern_controllers(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bring the controller of robosuite 1.4 and older files into the composite form of 1.5."""
    config = kwargs.get("controller_configs")
    if not isinstance(config, dict) or "body_parts" in config:
        return kwargs
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    robots = kwargs["robots"]
    robot = robots if isinstance(robots, str) else robots[0]
    config = {"input_ref_frame": "world", **config}  # before 1.5 deltas were given in the world frame
    config = refactor_composite_controller_config(config, robot, ["right"])
    # files of that age were recorded with the slower, exact order of the physics calls
    return {"lite_physics": False, **kwargs, "controller_configs": config}


def _check_timestep(timestep: float, control_freq: float) -> None:
    steps = 1.0 / control_freq / timestep if timestep > 0 else 0.0
    if steps < 1 or int(steps) != round(steps) or abs(steps - round(steps)) > 1e-6:
        raise DsrlError(
            f"physics_timestep {timestep} does not divide the control step of {1.0 / control_freq:g} s; "
            f"try {PHYSICS_TIMESTEP} (robosuite's own) or 0.005"
        )


@contextmanager
def _macro_timestep(seconds: float) -> Iterator[None]:
    """Robosuite reads the time step from a global; nobody else may see ours."""
    import robosuite.macros as macros

    before = macros.SIMULATION_TIMESTEP
    macros.SIMULATION_TIMESTEP = seconds
    try:
        yield
    finally:
        macros.SIMULATION_TIMESTEP = before


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


def _import_quietly() -> Any:
    """Import robosuite without its start-up advice; only robosuite's own logger is touched."""
    logger = logging.getLogger("robosuite_logs")
    if not any(isinstance(known, _ErrorsOnly) for known in logger.filters):
        logger.addFilter(_ErrorsOnly())
    import robosuite

    return robosuite


def make(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    """The task with its time limit."""
    assert spec.max_episode_steps is not None
    return TimeLimit(RobosuiteEnv(spec, render_mode), spec.max_episode_steps)


# without shaping robosuite's own reward is sparse too
FAMILY = Family("robosuite", "single-arm tasks of robosuite", resolve, make, dense={"reward_shaping": True})
