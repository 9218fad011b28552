"""Rows that do not depend, not even in their last bit, on how many are computed beside them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROWS = 4
"""the default number of environments: they are one block"""


def in_blocks(compute: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``compute(*rows)``, on a CPU always for four rows at a time; the last block is filled up with its last row.

    How a matrix product adds up depends on the number of rows. So many environments side by side then play other
    episodes than so many others do, which begins with a last bit. On a GPU, where nothing is promised to the bit, it is
    one call.
    """
    count = len(rows[0])
    if rows[0].device.type != "cpu" or count == _ROWS:
        return compute(*rows)
    results = []
    for start in range(0, count, _ROWS):
        block = [values[start : start + _ROWS] for values in rows]
        missing = _ROWS - len(block[0])
        if missing:
            block = [torch.cat([part, part[-1:].repeat_interleave(missing, dim=0)]) for part in block]
        results.append(compute(*block)[: _ROWS - missing])
    return torch.cat(results)
