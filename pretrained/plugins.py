"""Formats that other installed packages add, under the entry point group ``dsrl.policies``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from dsrl.pretrained.formats import Format
from dsrl.pretrained.found import Found

GROUP = "dsrl.policies"


@dataclass(frozen=True)
class Plugin:
    """One entry point, loaded or not."""

    name: str
    package: str
    """the distribution that brings it, and its version"""
    format: Format | None
    error: str = ""
    """why it could not be loaded"""


@cache
def plugins() -> tuple[Plugin, ...]:
    """All of them in the order of their names; a broken one is a warning, and says why in ``error``."""
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        try:
            plugin = Plugin(entry.name, package, _load(entry))
        except (Exception, SystemExit) as error:
            plugin = Plugin(entry.name, package, None, f"{type(error).__name__}: {error}")
            warnings.warn(
                f"the plugin '{entry.name}' of {package} is skipped ({plugin.error}); mend or uninstall that package",
                RuntimeWarning,
                stacklevel=2,
            )
        found.append(plugin)
    return tuple(found)


def plugin_formats() -> dict[str, Format]:
    """By name; those that can be loaded."""
    return {plugin.format.name: plugin.format for plugin in plugins() if plugin.format}


def _load(entry: EntryPoint) -> Format:
    loaded = entry.load()
    if not isinstance(loaded, Format):
        raise TypeError(f"'{entry.value}' is {type(loaded).__name__}, expected a dsrl.pretrained.formats.Format")
    if loaded.name != entry.name:
        raise ValueError(f"'{entry.value}' calls itself '{loaded.name}'; the entry point must have the same name")
    return replace(loaded, detect=_careful(loaded, entry.name))


def _careful(loaded: Format, name: str) -> Callable[[Found], bool]:
    """Its ``detect``, where an error means no."""

    def detect(found: Found) -> bool:
        try:
            return bool(loaded.detect(found))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the plugin '{name}' could not look at {found.path} ({reason})", RuntimeWarning, stacklevel=2
            )
            return False

    return detect
