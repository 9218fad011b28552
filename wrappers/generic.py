"""Any registered gymnasium environment with continuous actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as Registered

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.wrappers.families import Family
from dsrl.wrappers.observations import find_key, missing

PIXELS = "pixels"
"""what the image is called in an environment that observes nothing else"""


def resolve(spec: EnvSpec) -> EnvSpec:
    """Fill in the environment's own time limit.

    Raises:
        DsrlError: when no such id is registered.
    """
    registered = _registered(spec.name)
    return replace(
        spec,
        max_episode_steps=spec.max_episode_steps or registered.max_episode_steps,
        version=spec.version or version("gymnasium"),
    )


class GenericEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A registered environment with its observation flattened to one float32 vector.

    Images, where they are asked for by name, are in [0, 1] and channels first.

    The time limit is the environment's own unless the spec names another. ``info["success"]`` is there when the
    environment says ``success`` or ``is_success``.
    """

    def __init__(self, spec: EnvSpec, render_mode: str | None = None) -> None:
        self.env_spec = resolve(spec)
        self.render_mode = render_mode
        self.simulator = _make(self.env_spec, render_mode)
        self.metadata = self.simulator.metadata
        if not isinstance(self.simulator.action_space, spaces.Box) or len(self.simulator.action_space.shape) != 1:
            raise DsrlError(f"{spec.id} has the actions {self.simulator.action_space}; only a flat Box can be steered")
        box = self.simulator.action_space
        self.action_space = spaces.Box(box.low.astype(np.float32), box.high.astype(np.float32), dtype=np.float32)
        self._keys, self.obs_shapes = _layout(self.env_spec, self.simulator.observation_space)
        size = sum(int(np.prod(shape)) for shape in self.obs_shapes.values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The environment's own reset."""
        super().reset(seed=seed)
        obs, info = self.simulator.reset(seed=seed, options=options)
        return self._flat(obs), _with_success(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The environment's own step."""
        action = np.asarray(action).astype(self.simulator.action_space.dtype)
        obs, reward, terminated, truncated, info = self.simulator.step(action)
        return self._flat(obs), float(reward), bool(terminated), bool(truncated), _with_success(info)

    def render(self) -> Any:
        """The environment's own frame."""
        return self.simulator.render()

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()

    def _flat(self, obs: Any) -> np.ndarray:
        if not self._keys:
            return np.asarray(obs, dtype=np.float32).ravel()
        parts = obs if isinstance(obs, Mapping) else {PIXELS: obs}
        return np.concatenate([_read(np.asarray(parts[key])) for key in self._keys])


def _registered(env_id: str) -> Registered:
    from dsrl.wrappers import toy

    toy.register()
    module, _, name = env_id.rpartition(":")
    try:
        if module:  # as in gymnasium.make: an environment of one's own is registered by its module
            import_module(module)
        return gymnasium.spec(name)
    except ModuleNotFoundError as error:
        raise DsrlError(f"'{env_id}' names a module that cannot be imported: {error}") from error
    except gymnasium.error.Error as error:
        raise DsrlError(f"no environment '{env_id}' is registered.{nearest(env_id, _all_names())} ({error})") from error


def _all_names() -> list[str]:
    from dsrl.wrappers import metaworld, ogbench, robosuite

    names = [*gymnasium.registry, *(f"robosuite/{task}" for task in robosuite.TASKS)]
    names += [f"ogbench/{task}" for task in ogbench.tasks()]
    return [*names, *(f"metaworld/{task}" for task in metaworld.tasks())]


def _make(spec: EnvSpec, render_mode: str | None) -> gymnasium.Env:
    kwargs = dict(spec.kwargs)
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    try:
        # the checker would look at every step for the mistakes of authors, not of users
        return gymnasium.make(spec.name, max_episode_steps=spec.max_episode_steps, disable_env_checker=True, **kwargs)
    except (gymnasium.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise DsrlError(f"{spec.id} cannot be built: {error}") from error


def _layout(spec: EnvSpec, space: spaces.Space) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """The keys to read and the shape of each; no keys for an observation that is an array."""
    if isinstance(space, spaces.Box) and len(space.shape) <= 1:
        return (), {"state": (int(np.prod(space.shape)),)}
    if not isinstance(space, spaces.Dict | spaces.Box):
        raise DsrlError(f"{spec.id} observes {space}; a Box or a Dict of Boxes can be read")
    parts = dict(space.items()) if isinstance(space, spaces.Dict) else {PIXELS: space}
    shapes = {key: shape for key, box in parts.items() if (shape := _shape(box)) is not None}
    asked = spec.obs_keys or tuple(sorted(key for key, shape in shapes.items() if len(shape) == 1))
    if not asked:
        images = f"; its images {sorted(shapes)} are read when obs_keys names them" if shapes else ""
        raise DsrlError(f"{spec.id} has no low-dimensional observation among {sorted(parts)}{images}")
    keys = {key: find_key(key, parts) for key in asked}
    for key, name in keys.items():
        if name is None:
            raise missing(spec.id, key, asked, shapes)
        if name not in shapes:
            raise DsrlError(
                f"the observation '{name}' of {spec.id} is {parts[name]}; a vector can be read, or an image, uint8 of "
                "the shape (height, width, channels)"
            )
    return tuple(map(str, keys.values())), {key: shapes[str(name)] for key, name in keys.items()}


def _shape(box: spaces.Space) -> tuple[int, ...] | None:
    """Of what is read: ``(D,)``, or ``(C, H, W)`` for an image; None for what cannot be read."""
    if not isinstance(box, spaces.Box):
        return None
    if len(box.shape) <= 1:
        return box.shape or (1,)
    if len(box.shape) == 3 and box.dtype == np.uint8 and box.shape[-1] in (1, 3, 4):
        return box.shape[-1], *box.shape[:-1]
    return None


def _read(value: np.ndarray) -> np.ndarray:
    if value.ndim < 3:
        return value.astype(np.float32).ravel()
    return np.moveaxis(value, -1, 0).astype(np.float32).ravel() / np.float32(255)


def _with_success(info: dict[str, Any]) -> dict[str, Any]:
    for key in ("success", "is_success"):
        if key in info:
            return {**info, "success": bool(info[key])}
    return info


FAMILY = Family(
    "gymnasium", "whatever is registered with gymnasium", resolve, GenericEnv, reward="dense", own_process=False
)
