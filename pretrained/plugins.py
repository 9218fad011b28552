"""Formats that other installed packages add."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from dsrl.plugins import POLICIES, load_plugins
from dsrl.pretrained.formats import Format
from dsrl.pretrained.found import Found


def plugin_formats() -> dict[str, Format]:
    """By name; those that can be loaded."""
    formats = [plugin.loaded for plugin in load_plugins(POLICIES, Format) if plugin.loaded]
    return {each.name: replace(each, detect=_careful(each)) for each in formats}


def _careful(format: Format) -> Callable[[Found], bool]:
    """Its ``detect``, where an error means no."""

    def detect(found: Found) -> bool:
        try:
            return bool(format.detect(found))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the plugin '{format.name}' could not look at {found.path} ({reason})", RuntimeWarning, stacklevel=2
            )
            return False

    return detect
