"""The statistics of a LeRobot policy: inside its weights up to version 0.3, in processor files since 0.4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pretrained.folders import read_json, read_tensors
from dsrl.pretrained.lerobot_config import ACTION

INSIDE = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""prefixes of the statistics inside the weights"""
_PROCESSORS = {
    "policy_preprocessor.json": "normalizer_processor",
    "policy_postprocessor.json": "unnormalizer_processor",
}
"""file and the step in it that holds statistics"""
_NEUTRAL = ("rename_observations_processor", "to_batch_processor", "device_processor")
"""steps that leave the values alone"""
_LOW_HIGH = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
_EPS = 1e-8


@dataclass(frozen=True)
class Affine:
    """Observations: ``(x - offset) / scale``; actions: ``y * scale + offset``. In double precision."""

    offset: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Side:
    """What is known about normalising one side, the observations or the actions."""

    path: Path
    """where the statistics stand, for messages"""
    modes: Mapping[str, str]
    """by key; a key that is not there is left alone"""
    stats: Mapping[str, Mapping[str, Tensor]]
    """by key and name, such as min"""
    eps: float
    always_added: bool
    """0.3 adds ``eps`` to every range of an observation; 0.4 puts it in the place of a range of 0"""

    def affine(self, key: str, shape: tuple[int, ...]) -> Affine:
        """For one key: of so many numbers, or of an image ``(C, H, W)``, whose channels have one number each.

        Raises:
            DsrlError: when a statistic is missing, has another shape, or cannot be one.
        """
        mode = self.modes.get(key, "IDENTITY").upper()
        if mode == "IDENTITY":
            return Affine(torch.zeros(shape[0]).double(), torch.ones(shape[0]).double())
        if mode == "MEAN_STD":
            mean, std = (self._stat(key, name, shape) for name in ("mean", "std"))
            if (std < 0).any():
                raise DsrlError(f"{self.path}: a standard deviation of '{key}' is negative; was the file edited?")
            return Affine(mean.double(), (std if key == ACTION else std + self.eps).double())
        if mode not in _LOW_HIGH:
            known = ", ".join(["IDENTITY", "MEAN_STD", *_LOW_HIGH])
            raise DsrlError(f"{self.path}: '{key}' is normalised by '{mode}'; known are {known}")
        low, high = (self._stat(key, name, shape) for name in _LOW_HIGH[mode])
        if (high < low).any():
            first, second = _LOW_HIGH[mode]
            raise DsrlError(f"{self.path}: the {first} of '{key}' is above its {second}; were the two swapped?")
        span = high - low  # in single precision, as upstream: eps then vanishes beside a large range
        if not self.always_added:
            span = torch.where(span == 0, torch.full_like(span, self.eps), span)
        elif key != ACTION:
            span = span + self.eps
        return Affine(low.double() + span.double() / 2, span.double() / 2)

    def _stat(self, key: str, name: str, shape: tuple[int, ...]) -> Tensor:
        known = self.stats.get(key, {})
        if name not in known:
            found = sorted(f"{key}.{name}" for key, names in self.stats.items() for name in names)
            raise DsrlError(
                f"{self.path} lacks the statistic '{key}.{name}' (found: {found[:8] or 'none'}); LeRobot would "
                "silently leave these numbers as they are. Take the files of the training, or migrate the policy again"
            )
        value = known[name].float()
        expected = [shape[0], *(1 for _ in shape[1:])]
        if list(value.shape) != expected:
            raise DsrlError(f"{self.path}: '{key}.{name}' has shape {list(value.shape)}, config.json says {expected}")
        if not torch.isfinite(value).all():
            raise DsrlError(
                f"{self.path}: '{key}.{name}' holds NaN or infinite values: the policy was saved without statistics. "
                "Take the files of the training"
            )
        return value.flatten()


def inside_weights(path: Path, weights: Mapping[str, Tensor], modes: Mapping[str, str], keys: list[str]) -> list[Side]:
    """For observations and actions, from the buffers that LeRobot up to 0.3 keeps among the weights."""
    sides = []
    for prefix, wanted in (("normalize_inputs.", keys), ("unnormalize_outputs.", [ACTION])):
        stats: dict[str, dict[str, Tensor]] = {}
        for key in wanted:
            start = f"{prefix}buffer_{key.replace('.', '_')}."
            stats[key] = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        sides.append(Side(path, modes, stats, _EPS, always_added=True))
    return sides


def has_processors(folder: Path) -> bool:
    """Whether LeRobot 0.4 or later wrote it.

    Raises:
        DsrlError: when one of the two files is missing.
    """
    found = [name for name in _PROCESSORS if (folder / name).is_file()]
    if len(found) == 1:
        lost = next(name for name in _PROCESSORS if name not in found)
        raise DsrlError(f"{folder} has {found[0]} but no {lost}; copy all policy_* files of the training")
    return bool(found)


def from_processors(folder: Path) -> list[Side]:
    """For observations and actions, from the processor files of LeRobot 0.4 and later.

    Raises:
        DsrlError: when a file is broken or holds a step that changes values in another way.
    """
    sides = []
    for name, step_name in _PROCESSORS.items():
        path = folder / name
        step = _step(path, step_name)
        config = step.get("config", {})
        eps = config.get("eps", _EPS)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not (0 <= eps < math.inf):
            raise DsrlError(f"{path}: the eps of its {step_name} is {eps!r}, expected a small positive number")
        where, stats = _statistics(path, step)
        sides.append(Side(where, _modes(path, config), stats, float(eps), always_added=False))
    return sides


def _step(path: Path, wanted: str) -> dict[str, Any]:
    steps = read_json(path).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise DsrlError(f"{path} has no list of 'steps'; it is no processor file of LeRobot")
    found = []
    for step in steps:
        name = step.get("registry_name") or step.get("class")
        config = step.get("config", {})
        if not isinstance(config, dict):
            raise DsrlError(f"{path}: the config of its step '{name}' is no mapping")
        if name == wanted:
            found.append(step)
        elif name not in _NEUTRAL:
            raise DsrlError(
                f"{path} has a step '{name}', which may change observations or actions; known are {wanted} and "
                f"{', '.join(_NEUTRAL)}. Save the policy without it"
            )
        elif config.get("float_dtype") not in (None, "float32"):
            raise DsrlError(
                f"{path}: '{name}' computes in {config['float_dtype']}; only float32 is known. "
                "Set its float_dtype to null"
            )
    if len(found) != 1:
        raise DsrlError(f"{path} has {len(found)} steps '{wanted}', expected one; copy the files of the training")
    return found[0]


def _statistics(path: Path, step: Mapping[str, Any]) -> tuple[Path, dict[str, dict[str, Tensor]]]:
    state_file = step.get("state_file")
    if state_file is None:
        return path, {}
    if not isinstance(state_file, str) or Path(state_file).name != state_file:
        raise DsrlError(f"{path}: 'state_file' is {state_file!r}, expected the name of a file in the same folder")
    stats: dict[str, dict[str, Tensor]] = {}
    for name, value in read_tensors(path.parent / state_file).items():
        key, _, stat = name.rpartition(".")
        stats.setdefault(key, {})[stat] = value
    return path.parent / state_file, stats


def _modes(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    features, by_type = config.get("features", {}), config.get("norm_map", {})
    chosen = config.get("normalize_observation_keys")
    if not isinstance(features, dict) or not isinstance(by_type, dict) or not isinstance(chosen, list | None):
        raise DsrlError(f"{path}: 'features', 'norm_map' or 'normalize_observation_keys' is not what LeRobot writes")
    if not all(isinstance(mode, str) for mode in by_type.values()):
        raise DsrlError(f"{path}: 'norm_map' is {by_type}, expected names of modes such as MIN_MAX")
    modes = {}
    for key, feature in features.items():
        kind = feature.get("type") if isinstance(feature, dict) else None
        if not isinstance(kind, str):
            raise DsrlError(f"{path}: the feature '{key}' has no type")
        if key != ACTION and (chosen is None or key in chosen):
            modes[key] = by_type.get(kind, "IDENTITY")
    return {**modes, ACTION: by_type.get("ACTION", "IDENTITY")}
