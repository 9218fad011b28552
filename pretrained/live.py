"""Policies whose chunks somebody else's code computes: opened, not built from tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dsrl.config import LoadConfig


@dataclass(frozen=True)
class Live:
    """How such policies are found and opened."""

    recognises: Callable[[Path], bool]
    """from what lies there; runs nothing and raises nothing"""
    open: Callable[[Path, LoadConfig], nn.Module]
    """a :class:`~dsrl.policy.FrozenPolicy` on the CPU; raises :class:`~dsrl.errors.DsrlError`"""
    describe: Callable[[Any], list[tuple[str, str]]]
    """what its spec does not say, as rows of name and value"""
