"""NumPy's scalars in a torch file, read as plain numbers without NumPy's own unpickling.

Training programs keep their best return beside the weights, and that is often a ``numpy.float64``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_CODES = {
    "b1": "?", "f2": "e", "f4": "f", "f8": "d",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
}  # fmt: skip


class _Dtype:
    """Stands for ``numpy.dtype`` while a file is read."""

    def __init__(self, code: Any, *_: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _scalar(dtype: Any, data: Any = b"") -> bool | int | float | None:
    """A number, from what NumPy wrote of it; None for a text, a date and anything else."""
    code = _CODES.get(dtype.code) if isinstance(dtype, _Dtype) and isinstance(dtype.code, str) else None
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(code):
        return None
    return struct.unpack(dtype.order + code, data)[0]


NUMPY_SCALARS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray.scalar": _scalar,  # before NumPy 2
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _Dtype,
}
"""what stands in for NumPy's functions, by their names in a file"""
