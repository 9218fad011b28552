"""What DPPO keeps beside its checkpoints: hydra's YAML, and the ranges of observations and actions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dsrl.config import LoadConfig
from dsrl.errors import DsrlError

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MAX_BYTES = 1_000_000
_ABSENT: Any = object()


class RunConfig:
    """A hydra YAML as it lies on the disk. ``${a.b}`` is followed, any other interpolation is left as it is.

    Args:
        path: of the YAML, for error messages.
        values: what stands in it.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]):
        self.path = path
        self.values = values

    def has(self, name: str) -> bool:
        """Whether something stands at a dotted path."""
        return self._find(name) is not _ABSENT

    def known(self, name: str, default: Any = None) -> Any:
        """The value at a dotted path, ``default`` when there is none; None when an interpolation hides it."""
        value = self._resolve(self._find(name))
        if value is _ABSENT:
            return default
        return None if _is_open(value) else value

    def hides(self, name: str) -> bool:
        """Whether an interpolation that is not followed stands at a dotted path."""
        return _is_open(self._resolve(self._find(name)))

    def get(self, name: str, default: Any = None) -> Any:
        """Like :meth:`known`, for what cannot be found out otherwise.

        Raises:
            DsrlError: when it needs more than following a reference.
        """
        value = self._resolve(self._find(name))
        if _is_open(value):
            is_reference = _REFERENCE.fullmatch(value.strip()) is not None
            reason = "leads to no value" if is_reference else "is not evaluated, because it could run anything"
            raise DsrlError(
                f"{self.path}: '{name}' is {value!r}, which {reason}; write the plain value into a copy and give that "
                "with --load.config"
            )
        return default if value is _ABSENT else value

    def integer(self, name: str, default: int | None = None) -> int | None:
        """A whole number of at least 0, or None.

        Raises:
            DsrlError: for anything else.
        """
        value = self.number(name, default)
        if value is not None and (value != int(value) or value < 0):
            raise DsrlError(f"{self.path}: '{name}' is {value!r}; it must be a whole number")
        return None if value is None else int(value)

    def number(self, name: str, default: float | None = None) -> float | None:
        """A finite number, or None; YAML 1.1 reads ``1e-4`` as text, hydra as a number.

        Raises:
            DsrlError: for anything else.
        """
        value = self.get(name, default)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if isinstance(value, bool) or not np.isfinite(number):
            raise DsrlError(f"{self.path}: '{name}' is {value!r}; it must be a number")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """True or False.

        Raises:
            DsrlError: for anything else.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise DsrlError(f"{self.path}: '{name}' is {value!r}; it must be true or false")
        return value

    def target(self, name: str) -> str:
        """The last part of the class that hydra would build there, which is only compared with names; empty if none."""
        return str(self.known(f"{name}._target_", "")).rpartition(".")[2]

    def _find(self, name: str) -> Any:
        value: Any = self.values
        for word in name.split("."):
            value = self._resolve(value)
            if not isinstance(value, Mapping) or word not in value:
                return _ABSENT
            value = value[word]
        return value

    def _resolve(self, value: Any) -> Any:
        for _ in range(10):  # references may form a circle
            reference = _REFERENCE.fullmatch(value.strip()) if isinstance(value, str) else None
            if reference is None:
                break
            target: Any = self.values
            for word in reference[1].split("."):
                target = target.get(word, _ABSENT) if isinstance(target, Mapping) else _ABSENT
            if target is _ABSENT:
                break
            value = target
        return value


def _is_open(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


# -- finding the YAML -------------------------------------------------------------------------------------------------


def find_config(checkpoint: Path, load: LoadConfig) -> RunConfig:
    """The one that is given, or the one of the run that wrote the checkpoint.

    A run folder holds ``.hydra/config.yaml`` and ``checkpoint/state_N.pt``.

    Raises:
        DsrlError: when there is none, or more than one, or it is broken.
    """
    if load.config is not None:
        return _read_config(load.config)
    folders = _folders(checkpoint)
    for folder in folders:
        if (folder / ".hydra" / "config.yaml").is_file():
            return _read_config(folder / ".hydra" / "config.yaml")
        found = [path for path in sorted(folder.glob("*.y*ml")) if _mentions_levels(path)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DsrlError(
                f"{checkpoint}: which of {names} in {folder} describes it? Give it with --load.config {found[0]}"
            )
        if found:
            return _read_config(found[0])
    where = " and ".join(str(folder) for folder in folders)
    raise DsrlError(
        f"{checkpoint} is a DPPO checkpoint, which holds weights only. Number of noise levels, activation, clipping, "
        "observation steps, horizon and sampler stand in the YAML of its run, which is missing. Looked for "
        f".hydra/config.yaml and *.yaml in {where}. Give it with --load.config"
    )


def _folders(checkpoint: Path) -> list[Path]:
    return list(checkpoint.absolute().parents[:2])


def _mentions_levels(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _MAX_BYTES and b"denoising_steps" in path.read_bytes()
    except OSError:
        return False


def _read_config(path: Path) -> RunConfig:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DsrlError(f"{path} is larger than {_MAX_BYTES} bytes; that is no YAML of a DPPO run")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DsrlError(f"{path}: no YAML can be read there ({error.strerror}); see --load.config") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DsrlError(f"{path} is no YAML of plain values ({reason:.200}); nothing in it was executed") from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise DsrlError(f"{path} has no section 'model'; --load.config wants the YAML of the DPPO run")
    return RunConfig(path, values)


# -- ranges -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranges:
    """``normalization.npz``: the smallest and largest value of every number, ``(Do,)`` and ``(Da,)``."""

    path: Path
    obs_min: np.ndarray
    obs_max: np.ndarray
    action_min: np.ndarray
    action_max: np.ndarray


def find_ranges(checkpoint: Path, run: RunConfig, load: LoadConfig) -> Ranges:
    """The ``normalization.npz`` that is given, or lies beside checkpoint or YAML, or that the YAML names.

    Raises:
        DsrlError: when there is none, or it is broken.
    """
    if load.normalization is not None:
        return _read_ranges(load.normalization)
    beside = [*_folders(checkpoint), *_folders(run.path)]
    candidates = [folder / "normalization.npz" for folder in dict.fromkeys(beside)]
    named = run.known("normalization_path")
    if isinstance(named, str):
        candidates.append(Path(named))
    for path in candidates:
        if path.is_file():
            return _read_ranges(path)
    where = ", ".join(str(path) for path in candidates)
    raise DsrlError(
        f"{checkpoint} is a DPPO checkpoint; the ranges of its observations and actions stand in a normalization.npz "
        f"beside its data set, which is missing. Looked for {where}. Give it with --load.normalization"
    )


def _read_ranges(path: Path) -> Ranges:
    names = ("obs_min", "obs_max", "action_min", "action_max")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in names}
    except FileNotFoundError as error:
        raise DsrlError(f"no normalization at {path}; see --load.normalization") from error
    except KeyError as error:
        raise DsrlError(f"{path} lacks an array ({error.args[0]}); DPPO's has {', '.join(names)}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a broken file
        reason = " ".join(str(error).split())
        raise DsrlError(
            f"{path} is broken or no npz of plain arrays ({reason:.150}); nothing in it was executed. It should hold "
            f"{', '.join(names)}"
        ) from error
    for name, array in arrays.items():
        if array.ndim != 1 or not array.size or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DsrlError(
                f"{path}: '{name}' is {array.dtype} of shape {array.shape}; expected one row of finite numbers"
            )
    for kind in ("obs", "action"):
        low, high = arrays[f"{kind}_min"], arrays[f"{kind}_max"]
        if low.shape != high.shape or (low > high).any():
            raise DsrlError(
                f"{path}: '{kind}_min' and '{kind}_max' are no ranges; was the file made by another program?"
            )
    return Ranges(path, **arrays)
