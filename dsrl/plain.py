"""Dataclasses as plain values for YAML and JSON, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dsrl.errors import DsrlError, nearest


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain values, ready for YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass out of plain values, its inverse; ``prefix`` stands before the names in messages.

    Raises:
        DsrlError: for an unknown key, naming the nearest known one, or a value of another type.
    """
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise DsrlError(f"unknown setting '{prefix}{key}'.{nearest(key, list(hints))}")
    return kind(**{key: _convert(hints[key], value, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    """Bring a value out of a YAML file into the type of its field."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return build(kind, value, f"{name}.")
    if get_origin(kind) in (Union, UnionType):
        if value is None:
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(get_args(kind)[0], item, name) for item in value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    # YAML writes 1 for 1.0, and True is an int to Python
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str | int | float):
        return str(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise DsrlError(f"the setting '{name}' holds {value!r}, expected {_describe_type(kind)}")


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return getattr(kind, "__name__", str(kind))
