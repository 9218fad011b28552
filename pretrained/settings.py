"""The config inside a checkpoint: plain values, asked for by dotted name, never evaluated."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dsrl.errors import DsrlError, nearest
from dsrl.pretrained.allowlist import Global, Node

T = TypeVar("T")
_MISSING: Any = object()
_MOST_VALUES = 100_000
_DEEPEST = 50


def plain(value: Any, path: Path) -> Any:
    """The values in pickled OmegaConf nodes: dicts, lists, numbers, strings; references stay the strings they are.

    Raises:
        DsrlError: for anything else, and for a config that contains itself.
    """
    left = _MOST_VALUES

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _DEEPEST or left < 0:
            raise DsrlError(f"{path}: its config contains itself or is not one of Diffusion Policy's")
        if isinstance(value, Node):
            state = value.state if isinstance(value.state, dict) else {}
            leaf = value.cls.name == "AnyNode"
            if ("_val" if leaf else "_content") not in state:
                raise DsrlError(f"{path}: its config holds '{value.cls}' where a value should stand")
            return walk(state["_val" if leaf else "_content"], depth + 1)
        if isinstance(value, dict):
            if not all(isinstance(key, str | int) for key in value):
                raise DsrlError(f"{path}: its config has keys that are no names: {list(value)!s:.80}")
            return {key: walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, depth + 1) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        what = f"the name '{value}'" if isinstance(value, Global) else f"a {type(value).__name__}"
        raise DsrlError(f"{path}: its config holds {what}, not a plain value; save it again with plain values only")

    return walk(value, 0)


class Settings:
    """A config of plain values.

    Args:
        values: nested dicts.
        path: of the file that they stand in, for messages.
    """

    def __init__(self, values: Any, path: Path):
        if not isinstance(values, Mapping):
            raise DsrlError(f"{path}: its config is a {type(values).__name__}, not a mapping")
        self.values, self.path = values, path

    def raw(self, name: str, default: Any = _MISSING) -> Any:
        """The value of ``a.b.c``.

        Raises:
            DsrlError: when it is missing without a default, or is a reference.
        """
        value: Any = self.values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                if default is _MISSING:
                    known = list(map(str, value)) if isinstance(value, Mapping) else []
                    raise DsrlError(
                        f"{self.path}: its config lacks '{name}' (there: {known[:12]}).{nearest(part, known)} Save the "
                        "checkpoint again with its whole config"
                    )
                return default
            value = value[part]
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise DsrlError(
                f"{self.path}: '{name}' in its config is the reference '{value:.80}', and references of a file are "
                "never evaluated. Call OmegaConf.resolve(cfg) in Diffusion Policy, then save the checkpoint again"
            )
        return value

    def get(self, name: str, kind: type[T], default: T = _MISSING) -> T:
        """A value of one type; whole numbers are also floats, but truth values are no numbers.

        Raises:
            DsrlError: when it is missing or of another type.
        """
        value = self.raw(name, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return kind(value)  # type: ignore[call-arg]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DsrlError(f"{self.path}: '{name}' in its config is {value!r:.80}; it must be a {kind.__name__}")
        return value

    def count(self, name: str, default: int = _MISSING, *, least: int = 1, most: int = 100_000) -> int:
        """A size. ``most`` keeps a file from asking for all the memory.

        Raises:
            DsrlError: when it is missing, no whole number or outside ``least`` to ``most``.
        """
        value = self.get(name, int, default)
        if not least <= value <= most:
            raise DsrlError(f"{self.path}: '{name}' in its config is {value}; it must lie in {least} to {most}")
        return value

    def fixed(self, name: str, expected: Any, default: Any, why: str) -> None:
        """Refuse every value but one.

        Raises:
            DsrlError: saying ``why``.
        """
        value = self.raw(name, default)
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise DsrlError(f"{self.path}: '{name}' in its config is {value!r:.80}; {why}")

    def only(self, name: str, known: Collection[str], what: str) -> None:
        """Refuse keys that are not known: what they would do is not known either.

        Raises:
            DsrlError: naming the first one.
        """
        for key in self.get(name, dict):
            if key not in known:
                raise DsrlError(
                    f"{self.path}: '{name}.{key}' in its config is {what}.{nearest(str(key), list(known))} Without "
                    "knowing what it does, the policy would differ"
                )
