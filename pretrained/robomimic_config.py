"""The config inside a robomimic checkpoint: checked values, asked for by dotted path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dsrl.errors import DsrlError
from dsrl.pretrained.found import Found

MOST = 10_000
"""of every count: more is a damaged file"""


def config_of(found: Found, content: Mapping[str, Any]) -> dict[str, Any]:
    """The config, which stands in the file as JSON text.

    Raises:
        DsrlError: when it is something else, or that of a transformer.
    """
    try:
        config = json.loads(content["config"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DsrlError(f"{found.path}: its 'config' is not the JSON text that robomimic writes ({error})") from error
    if not isinstance(config, dict):
        raise DsrlError(f"{found.path}: its 'config' holds {type(config).__name__}, expected a JSON object")
    if value_at(found, config, "algo.transformer.enabled", default=False) is True:
        raise DsrlError(f"{found.path}: algo.transformer is enabled; robomimic's U-Net is supported only")
    return config


def value_at(found: Found, tree: Any, path: str, part: str = "config.", default: Any = ...) -> Any:
    """What stands at a dotted path; ``part`` names the tree in messages.

    Raises:
        DsrlError: when it is missing and there is no default.
    """
    for name in path.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            if default is ...:
                raise DsrlError(f"{found.path} lacks '{part}{path}'; robomimic writes it, was the file edited?")
            return default
        tree = tree[name]
    return tree


def integer_at(
    found: Found, tree: Any, path: str, part: str = "config.", low: int = 1, high: int = MOST, default: Any = ...
) -> int:
    """A whole number at a dotted path.

    Raises:
        DsrlError: when it is missing, something else or out of range.
    """
    value = value_at(found, tree, path, part, default)
    if type(value) is not int or not low <= value <= high:
        raise DsrlError(
            f"{found.path}: '{part}{path}' is {value!r:.60}, expected a whole number from {low} to {high}; train again "
            "or mend the file"
        )
    return value


def flag_at(found: Found, tree: Any, path: str) -> bool:
    """True or false at a dotted path.

    Raises:
        DsrlError: when it is missing or something else.
    """
    value = value_at(found, tree, path)
    if type(value) is not bool:
        raise DsrlError(f"{found.path}: 'config.{path}' is {value!r:.60}, expected true or false")
    return value
