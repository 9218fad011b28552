"""Recorded experience: trajectories, robomimic HDF5 files, and the windows that behaviour cloning reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsrl.env_spec import EnvSpec
from dsrl.errors import DsrlError, nearest
from dsrl.files import replacing

if TYPE_CHECKING:
    import h5py


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
    seed: int | None = None
    """``env.reset(seed=...)`` starts this episode; None where the file does not say"""
    initial_state: np.ndarray | None = None
    """``(S,)`` the simulator's own state before the first action (robomimic's ``states[0]``), where there is one"""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Trajectories:
    """Episodes that share one observation layout."""

    episodes: tuple[Trajectory, ...]
    obs_shapes: Mapping[str, tuple[int, ...]]
    """in the order of concatenation"""
    env: EnvSpec | None = None
    valid: tuple[int, ...] = ()
    """indices of the episodes held out for validation; empty: not chosen yet"""

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.episodes)

    @property
    def n_steps(self) -> int:
        """Env steps of all episodes together."""
        return sum(len(episode) for episode in self.episodes)

    def split(self, valid_share: float = 0.1, seed: int = 0) -> tuple[Trajectories, Trajectories]:
        """Training and validation part, by episode: as the file's mask says, else a seeded draw."""
        held_out = set(self.valid or _draw_valid(len(self), valid_share, seed))
        parts = ([e for i, e in enumerate(self.episodes) if (i in held_out) == chosen] for chosen in (False, True))
        train, valid = (replace(self, episodes=tuple(part), valid=()) for part in parts)
        return train, valid


def bc_windows(data: Trajectories, n_obs_steps: int, horizon: int, action_start: int) -> tuple[np.ndarray, np.ndarray]:
    """One window per env step ``t``; none crosses an episode.

    Index ``i`` of a chunk is the action of time ``t - action_start + i``. What lies before the first or after the last
    step of an episode repeats that step.

    Returns:
        observation histories ``(N, To, Do)`` and chunks ``(N, Tp, Da)``, float32, environment units.
    """
    if not data.episodes:
        return np.empty((0, n_obs_steps, 0), np.float32), np.empty((0, horizon, 0), np.float32)
    histories, chunks = [], []
    for episode in data.episodes:
        now = np.arange(len(episode))[:, None]
        last = len(episode) - 1
        obs_time = np.clip(now - n_obs_steps + 1 + np.arange(n_obs_steps), 0, last)
        action_time = np.clip(now - action_start + np.arange(horizon), 0, last)
        histories.append(concat_keys(episode.obs, data.obs_shapes)[obs_time])
        chunks.append(episode.actions.astype(np.float32)[action_time])
    return np.concatenate(histories), np.concatenate(chunks)


def concat_keys(obs: Mapping[str, np.ndarray], keys: Sequence[str] | Mapping[str, Any]) -> np.ndarray:
    """``key -> (T, *shape)`` -> ``(T, Do)`` float32, in the order of ``keys``."""
    return np.concatenate([np.asarray(obs[key], np.float32).reshape(len(obs[key]), -1) for key in keys], axis=-1)


def write_hdf5(path: Path, data: Trajectories) -> None:
    """Write a robomimic HDF5 file (``data/demo_i/{obs,next_obs,actions,rewards,dones}``, ``env_args``, ``mask``).

    The file appears whole or not at all. ``dones`` holds terminations, not time limits.
    """
    import h5py

    path = Path(path)
    if not data.episodes:
        raise DsrlError(f"nothing to write to {path}: the data set has no episodes")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        group = file.create_group("data")
        group.attrs["total"] = data.n_steps
        # robomimic reads env_args unconditionally; {} keeps a file without a known environment readable
        group.attrs["env_args"] = json.dumps(data.env.to_robomimic() if data.env else {})
        group.attrs["obs_keys"] = json.dumps(list(data.obs_shapes))
        for i, episode in enumerate(data.episodes):
            _write_demo(group.create_group(f"demo_{i}"), episode, list(data.obs_shapes))
        valid = set(data.valid or _draw_valid(len(data), 0.1, seed=0))
        for name, members in (("train", set(range(len(data))) - valid), ("valid", valid)):
            file.create_dataset(f"mask/{name}", data=np.array([f"demo_{i}" for i in sorted(members)], dtype="S"))


def read_hdf5(path: Path) -> Trajectories:
    """Read a robomimic HDF5 file, low-dimensional keys only.

    Keys stand in the order in which the file's environment concatenates them; robomimic itself sorts them.

    Raises:
        DsrlError: when the file is missing, broken, incomplete or holds NaN; the message names the place.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        hint = nearest(path.name, [p.name for p in path.parent.glob("*.hdf5")]) if path.parent.is_dir() else ""
        raise DsrlError(f"no data set at {path}.{hint} `dsrl collect` records one.")
    try:
        with h5py.File(path, "r") as file:
            return _read_file(path, file)
    except OSError as error:
        raise DsrlError(f"{path} is not a readable HDF5 file (truncated, or another format): {error}") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def _write_demo(group: h5py.Group, episode: Trajectory, keys: list[str]) -> None:
    group.attrs["num_samples"] = len(episode)
    group.attrs["success"] = bool(episode.success)
    if episode.seed is not None:
        group.attrs["seed"] = int(episode.seed)
    if episode.initial_state is not None:
        group.attrs["initial_state"] = np.asarray(episode.initial_state, np.float64)
    group["actions"] = np.asarray(episode.actions, np.float32)
    group["rewards"] = np.asarray(episode.rewards, np.float32)
    group["dones"] = np.asarray(episode.terminated, np.int64)
    for key in keys:
        group[f"obs/{key}"] = np.asarray(episode.obs[key])
        group[f"next_obs/{key}"] = np.asarray(episode.next_obs[key])


def _draw_valid(n_episodes: int, valid_share: float, seed: int) -> tuple[int, ...]:
    """At least one episode when there are two and any share is asked for."""
    if n_episodes < 2 or valid_share <= 0:
        return ()
    count = min(max(1, round(valid_share * n_episodes)), n_episodes - 1)
    return tuple(sorted(np.random.default_rng(seed).permutation(n_episodes)[:count].tolist()))


# -- reading ----------------------------------------------------------------------------------------------------------


def _read_file(path: Path, file: h5py.File) -> Trajectories:
    if "data" not in file:
        raise DsrlError(
            f"{path} has no group 'data' (found: {sorted(file) or 'nothing'}); a robomimic HDF5 file is needed"
        )
    group = file["data"]
    names = sorted((name for name in group if name.startswith("demo_")), key=_demo_number)
    if not names:
        raise DsrlError(
            f"{path} has no demonstrations: 'data' holds {sorted(group) or 'nothing'}, demo_0 ... are needed"
        )
    env = _read_env(path, group)
    keys = _obs_keys(path, group, names[0], env)
    episodes = tuple(_read_demo(path, group[name], name, keys) for name in names)
    shapes = {key: episodes[0].obs[key].shape[1:] for key in keys}
    for name, episode in zip(names, episodes, strict=True):
        for key in keys:
            if episode.obs[key].shape[1:] != shapes[key]:
                raise DsrlError(
                    f"{path}: {name}/obs/{key} has shape {list(episode.obs[key].shape[1:])}, "
                    f"{names[0]} has {list(shapes[key])}; all demonstrations must share one layout"
                )
        if episode.actions.shape[1:] != episodes[0].actions.shape[1:]:
            raise DsrlError(f"{path}: {name} has actions of {episode.actions.shape[1:]}, {names[0]} another length")
    if env is not None and env.family == "robosuite" and not env.obs_keys:
        env = replace(env, obs_keys=tuple(keys))
    return Trajectories(episodes, shapes, env, _read_mask(file, names))


def _demo_number(name: str) -> tuple[int, str]:
    digits = name.removeprefix("demo_")
    return (int(digits) if digits.isdigit() else 10**9, name)


def _read_env(path: Path, group: h5py.Group) -> EnvSpec | None:
    try:
        env_args = json.loads(group.attrs.get("env_args", "{}"))
        return EnvSpec.from_robomimic(env_args) if env_args else None
    except (ValueError, KeyError, TypeError) as error:
        raise DsrlError(f"{path}: the attribute env_args does not describe an environment ({error!r})") from error


def _obs_keys(path: Path, group: h5py.Group, first: str, env: EnvSpec | None) -> list[str]:
    """Low-dimensional keys in the order of concatenation."""
    if "obs" not in group[first]:
        raise DsrlError(f"{path}: {first} has no 'obs' (found: {sorted(group[first])}); replay it with robomimic first")
    present = sorted(key for key, values in group[first]["obs"].items() if values.ndim <= 2)
    stated = json.loads(group.attrs.get("obs_keys", "[]")) or list(env.obs_keys if env else ())
    missing = [key for key in stated if key not in present]
    if missing:
        raise DsrlError(f"{path}: {first} lacks the low-dimensional observations {missing}; it has {present}")
    if not present:
        raise DsrlError(f"{path}: {first} has no low-dimensional observation, only {sorted(group[first]['obs'])}")
    return stated or present


def _read_demo(path: Path, demo: h5py.Group, name: str, keys: list[str]) -> Trajectory:
    for needed in ("actions", "obs"):
        if needed not in demo:
            raise DsrlError(f"{path}: {name} has no '{needed}' (found: {sorted(demo)}); actions and obs are needed")
    actions = np.asarray(demo["actions"], np.float32)
    steps = len(actions)
    if actions.ndim != 2 or steps == 0:
        raise DsrlError(f"{path}: {name}/actions has shape {list(actions.shape)}; (steps, action_dim) is needed")
    obs, next_obs = (
        {key: _read_obs(path, demo, name, part, key, steps) for key in keys} for part in ("obs", "next_obs")
    )
    if not np.isfinite(actions).all():
        raise DsrlError(f"{path}: {name}/actions holds NaN or infinite values")
    rewards, dones = (_read_per_step(path, demo, name, part, steps) for part in ("rewards", "dones"))
    # a file without our attribute: robomimic's sparse reward is 1 exactly at success
    success = bool(demo.attrs["success"]) if "success" in demo.attrs else bool(rewards.max() >= 1.0)
    seed = int(demo.attrs["seed"]) if "seed" in demo.attrs else None
    state = demo.attrs.get("initial_state", demo["states"][0] if "states" in demo and len(demo["states"]) else None)
    state = None if state is None else np.asarray(state, np.float64).ravel()
    return Trajectory(obs, next_obs, actions, rewards.astype(np.float32), dones.astype(bool), success, seed, state)


def _read_per_step(path: Path, demo: h5py.Group, name: str, part: str, steps: int) -> np.ndarray:
    """``(T,)``; zeros where the file has none."""
    values = np.asarray(demo[part]) if part in demo else np.zeros(steps)
    if values.size != steps:
        raise DsrlError(f"{path}: {name}/{part} has shape {list(values.shape)}, its actions have {steps} steps")
    if not np.isfinite(values).all():
        raise DsrlError(f"{path}: {name}/{part} holds NaN or infinite values")
    return values.reshape(steps)


def _read_obs(path: Path, demo: h5py.Group, name: str, part: str, key: str, steps: int) -> np.ndarray:
    """``(T, *shape)``; a missing ``next_obs`` is ``obs`` one step later, its last entry repeated."""
    shifted = part == "next_obs" and (part not in demo or key not in demo[part])
    source = demo["obs" if shifted else part]
    if key not in source:
        raise DsrlError(f"{path}: {name} has no '{part}/{key}' (found: {sorted(source)})")
    values = np.asarray(source[key])
    if len(values) != steps:
        raise DsrlError(f"{path}: {name}/{part}/{key} has {len(values)} steps, its actions have {steps}")
    if not np.isfinite(values).all():
        raise DsrlError(f"{path}: {name}/{part}/{key} holds NaN or infinite values")
    values = values.reshape(steps, 1) if values.ndim == 1 else values
    return np.concatenate([values[1:], values[-1:]]) if shifted else values


def _read_mask(file: h5py.File, names: list[str]) -> tuple[int, ...]:
    if "mask" not in file or "valid" not in file["mask"]:
        return ()
    valid = {name.decode() if isinstance(name, bytes) else str(name) for name in file["mask"]["valid"][()]}
    return tuple(i for i, name in enumerate(names) if name in valid)
