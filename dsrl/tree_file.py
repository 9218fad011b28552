"""Nested plain values and tensors as the bytes of one safetensors file; reading it runs no code."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_TENSOR, _ARRAY, _TREE = "$tensor", "$array", "tree"
DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, IndexError, RuntimeError)
"""what reading a damaged file may raise"""


def to_bytes(tree: Mapping[str, Any]) -> bytes:
    """Dicts with words as keys, lists, tuples, numbers, words, tensors and numpy arrays.

    Tensors come back on the CPU, tuples and deques as lists.

    Raises:
        TypeError: for anything else.
    """
    tensors: dict[str, Tensor] = {}
    plain = _plain(tree, tensors)
    return save(tensors, {_TREE: json.dumps(plain)})


def from_bytes(data: bytes) -> Any:
    """The inverse of :func:`to_bytes`.

    Raises:
        one of ``DAMAGE``: when the bytes are not those of such a file.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return _tree(json.loads(header["__metadata__"][_TREE]), load(data))


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"a key is {wrong[0]!r}; words can be written")
        return {key: _plain(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [_plain(item, tensors) for item in value]
    name = str(len(tensors))
    if isinstance(value, Tensor):
        # a copy: the file must not hold what is changed, or shared, afterwards
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {_TENSOR: name}
    if isinstance(value, np.ndarray):
        # safetensors has no unsigned integers of 32 bits in older versions
        kept = value.astype(np.int64) if value.dtype.kind == "u" else value
        tensors[name] = torch.from_numpy(np.array(kept))
        return {_ARRAY: name, "dtype": str(value.dtype)}
    raise TypeError(f"{type(value).__name__} cannot be written as plain values")


def _tree(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_tree(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ARRAY in value:
        return tensors[value[_ARRAY]].numpy().astype(value["dtype"])
    return {key: _tree(item, tensors) for key, item in value.items()}
