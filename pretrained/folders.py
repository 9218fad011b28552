"""The files of a folder that is a checkpoint: JSON and safetensors, neither of which can run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dsrl.errors import DsrlError, nearest


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DsrlError: when it is missing or something else.
    """
    _check_there(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DsrlError(f"{path} is truncated or no JSON ({error!s:.120}); copy it again") from error
    if not isinstance(content, dict):
        raise DsrlError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_tensors(path: Path, ignore: str = "\0") -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, but for those whose names end like ``ignore``.

    Raises:
        DsrlError: when it is missing, broken or holds other than floating-point numbers.
    """
    _check_there(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DsrlError(f"{path} is truncated or no safetensors file ({error!s:.120}); copy it again") from error
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(ignore)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DsrlError(f"{path}: '{name}' holds {tensor.dtype}, expected floating-point numbers")
    return tensors


def _check_there(path: Path) -> None:
    if not path.is_file():
        inside = sorted(p.name for p in path.parent.iterdir())
        hint = nearest(path.name, inside)
        raise DsrlError(f"{path.parent} lacks {path.name}.{hint} It has {inside[:8]}; copy the whole folder")
