"""What other installed packages add, under the entry point groups ``dsrl.policies`` and ``dsrl.envs``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

POLICIES = "dsrl.policies"
"""formats of checkpoints: a :class:`dsrl.pretrained.formats.Format` each"""
ENVS = "dsrl.envs"
"""families of simulators: a :class:`dsrl.wrappers.families.Family` each"""

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """One entry point, loaded or not."""

    name: str
    package: str
    """the distribution that brings it, and its version"""
    loaded: T | None
    error: str = ""
    """why it could not be loaded"""


def plugin_names(group: str) -> tuple[str, ...]:
    """The names of a group; nothing is imported."""
    return tuple(sorted(entry.name for entry in entry_points(group=group)))


@cache
def load_plugins(group: str, kind: type[T]) -> tuple[Plugin[T], ...]:
    """All of a group, objects of ``kind``, in the order of their names; a broken one is a warning, and says why."""
    found: list[Plugin[T]] = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        try:
            plugin = Plugin(entry.name, package, _load(entry, kind))
        except (Exception, SystemExit) as error:
            plugin = Plugin(entry.name, package, None, f"{type(error).__name__}: {error}")
            warnings.warn(
                f"the plugin '{entry.name}' of {package} is skipped ({plugin.error}); mend or uninstall that package",
                RuntimeWarning,
                stacklevel=2,
            )
        found.append(plugin)
    return tuple(found)


def _load(entry: EntryPoint, kind: type[T]) -> T:
    loaded = entry.load()
    if not isinstance(loaded, kind):
        expected = f"{kind.__module__}.{kind.__name__}"
        raise TypeError(f"'{entry.value}' is {type(loaded).__name__}, expected a {expected}")
    name = getattr(loaded, "name", None)
    if name != entry.name:
        raise ValueError(f"'{entry.value}' calls itself '{name}'; the entry point must have the same name")
    return loaded
