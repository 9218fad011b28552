"""What a result depends on, as plain values by the words that a user knows them by, and what has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any


def flags(settings: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, Any]:
    """``{"na": {"tau": 1}}`` -> ``{"--na.tau": 1}``, without the ``free`` names at the top, which may change."""
    return {f"--{name}": value for name, value in flat({k: v for k, v in settings.items() if k not in free})}


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """``{"na": {"tau": 1}}`` -> ``[("na.tau", 1)]``, spelled as flags are."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        word = prefix + name.replace("_", "-")
        found += flat(value, f"{word}.") if isinstance(value, Mapping) and value else [(word, value)]
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``"package torch was 2.8.0, is 2.9.0"``, in the order of the facts."""
    names = [*before, *(name for name in now if name not in before)]
    return [f"{name} was {before.get(name)}, is {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def file_sha256(path: Path) -> str:
    """Of the content of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
