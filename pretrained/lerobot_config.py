"""What the config.json of a LeRobot policy says: checked fields, and the features that go in and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsrl.errors import DsrlError

STATE, ENV, ACTION = "observation.state", "observation.environment_state", "action"
_LIMIT = 100_000
"""of every count: more is a damaged file and would only fill the memory"""
_MOST_CHANNELS, _LONGEST_SIDE = 16, 4096
"""of an image, for the same reason"""
_DEFAULTS: dict[str, Any] = {
    "n_obs_steps": 2,
    "horizon": 16,
    "n_action_steps": 8,
    "down_dims": [512, 1024, 2048],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 128,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDPM",
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_inference_steps": None,
}
"""of LeRobot up to 0.5, for what a config.json leaves out"""
_DEFAULTS_SINCE_0_6 = {"horizon": 64, "n_action_steps": 32}
_CHOICES = {
    "noise_scheduler_type": ("DDPM", "DDIM"),
    "beta_schedule": ("squaredcos_cap_v2", "linear", "scaled_linear"),
    "prediction_type": ("epsilon", "sample"),
}


def read_settings(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Every field that matters here, checked, and what was assumed.

    Raises:
        DsrlError: when a value is not what LeRobot can have.
    """
    recent = "gradient_checkpointing" in config
    defaults = {**_DEFAULTS, **(_DEFAULTS_SINCE_0_6 if recent else {})}
    # num_inference_steps may well be left out: it then follows from another field
    absent = [name for name in defaults if name not in config and name != "num_inference_steps"]
    settings = {name: config.get(name, default) for name, default in defaults.items()}
    for name, value in settings.items():
        expected = _what_is_wrong(name, value, defaults[name])
        if expected:
            raise DsrlError(f"{path}: '{name}' is {value!r}, expected {expected}")
    if settings["n_groups"] != 8:
        raise DsrlError(
            f"{path}: 'n_groups' is {settings['n_groups']}; only 8 is known, because LeRobot's last block always has 8 "
            "groups. Train with n_groups=8, the default"
        )
    if settings["n_action_steps"] > settings["horizon"] - settings["n_obs_steps"] + 1:
        raise DsrlError(
            f"{path}: n_action_steps is {settings['n_action_steps']}, but a horizon of {settings['horizon']} with "
            f"{settings['n_obs_steps']} observation steps has only {settings['horizon'] - settings['n_obs_steps'] + 1}"
        )
    if not absent:
        return settings, ()
    version = "0.6" if recent else "0.3 to 0.5"
    values = ", ".join(f"{name}={defaults[name]}" for name in absent)
    return settings, (f"config.json does not say {', '.join(absent)}; assumed is LeRobot {version}: {values}",)


def _what_is_wrong(name: str, value: Any, default: Any) -> str:
    """What was expected of a field; empty when it is that."""
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else f"one of {', '.join(_CHOICES[name])}"
    if name == "num_inference_steps" and value is None:
        return ""
    if name == "down_dims":
        fine = isinstance(value, list) and bool(value) and all(is_count(width) for width in value)
        return "" if fine else "a list of channels per level"
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if name.startswith("beta"):
            return "" if number and value < 1 else "a number between 0 and 1"
        return "" if number else "a positive number"
    if name == "kernel_size" and is_count(value) and value % 2 == 0:
        return "an odd number"
    return "" if is_count(value) else f"a whole number from 1 to {_LIMIT}"


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 1 to the limit."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LIMIT


@dataclass(frozen=True)
class Features:
    """What goes into the network and comes out of it."""

    obs_shapes: dict[str, tuple[int, ...]]
    """in the order in which LeRobot concatenates them, or what it sees in them: state, images, environment's state"""
    action_dim: int
    notes: tuple[str, ...]

    @property
    def images(self) -> dict[str, tuple[int, ...]]:
        """Shapes ``(C, H, W)`` of the cameras, in the order of config.json."""
        return {key: shape for key, shape in self.obs_shapes.items() if len(shape) == 3}

    @property
    def low_dims(self) -> dict[str, int]:
        """Lengths of all else."""
        return {key: shape[0] for key, shape in self.obs_shapes.items() if len(shape) == 1}


def read_features(config: Mapping[str, Any], path: Path) -> Features:
    """Keys and shapes of observations and actions.

    Raises:
        DsrlError: when a feature is missing or malformed.
    """
    inputs, outputs = _shapes(config, path, "input"), _shapes(config, path, "output")
    for key, where in ((STATE, inputs), (ACTION, outputs)):
        if key not in where:
            raise DsrlError(f"{path} has no feature '{key}' (found: {sorted(where) or 'none'}); LeRobot demands it")
    other = sorted(key for key, (kind, _) in inputs.items() if kind == "ENV" and key != ENV)
    if other:
        raise DsrlError(f"{path}: the environment's state is called '{other[0]}', LeRobot only passes on '{ENV}'")
    images = {key: tuple(shape) for key, (kind, shape) in inputs.items() if kind == "VISUAL"}
    for key, shape in images.items():
        if len(shape) != 3 or shape[0] > _MOST_CHANNELS or max(shape[1:]) > _LONGEST_SIDE:
            raise DsrlError(f"{path}: '{key}' has the shape {list(shape)}, expected that of an image, [3, H, W]")
    if len(set(images.values())) > 1:
        raise DsrlError(f"{path}: LeRobot wants images of one shape, these have {images}")
    low_dim = {key: tuple(inputs[key][1]) for key in (STATE, ENV) if key in inputs}
    for key, shape in {**low_dim, ACTION: tuple(outputs[ACTION][1])}.items():
        if len(shape) != 1:
            raise DsrlError(f"{path}: '{key}' has the shape {list(shape)}, expected one number, its length")
    used = {STATE: low_dim.pop(STATE), **images, **low_dim}
    unused = sorted(inputs.keys() - used.keys())
    notes = (f"its network does not look at {', '.join(unused)}",) if unused else ()
    return Features(used, outputs[ACTION][1][0], notes)


def _shapes(config: Mapping[str, Any], path: Path, side: str) -> dict[str, tuple[str, list[int]]]:
    """Type and shape by key; the first files, without types, say ``input_shapes`` instead of ``input_features``."""
    named = f"{side}_features" if f"{side}_features" in config else f"{side}_shapes"
    features = config.get(named)
    if not isinstance(features, dict):
        raise DsrlError(f"{path} has no mapping '{side}_features'; it is no policy of LeRobot")
    result = {}
    for key, feature in features.items():
        if named == f"{side}_shapes":
            guess = "VISUAL" if "image" in key else {STATE: "STATE", ENV: "ENV", ACTION: "ACTION"}.get(key, "")
            feature = {"type": guess, "shape": feature}
        kind, shape = (feature.get("type"), feature.get("shape")) if isinstance(feature, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(shape, list) or not all(is_count(size) for size in shape):
            raise DsrlError(f"{path}: '{named}.{key}' is {feature!s:.80}, expected a type and a shape")
        result[key] = kind, shape
    return result
