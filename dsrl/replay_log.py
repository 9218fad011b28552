"""A replay buffer on disk that is only ever appended to: what it costs to keep grows with what is new."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.files import writing
from dsrl.replay import SteeringReplayBuffer

_AT_ONCE = 8 << 20
"""bytes that are held beside the buffer"""


class ReplayLog:
    """Files of decisions as little-endian float32, one row after the other, each file named after its first decision.

    :meth:`append` returns what says which part of the files belongs to a checkpoint; what stands behind it, after a
    kill for one, is not read and is written over.

    Args:
        folder: of the files.
        rows_per_file: a file is never changed once it is full, and removed when the buffer has overwritten all of it.
    """

    def __init__(self, folder: Path, rows_per_file: int = 65_536):
        self.folder, self.rows_per_file = folder, rows_per_file
        self._files: list[list[int]] = []  # [first decision, rows, checksum]

    def append(self, buffer: SteeringReplayBuffer) -> dict[str, Any]:
        """Write what is new, down to the disk.

        Raises:
            RunFailed: when it cannot be written; what was written before is intact.
        """
        logged = sum(self._files[-1][:2]) if self._files else 0
        oldest = buffer.written - buffer.rows
        if logged < oldest:  # overwritten before it was ever kept
            self._files, logged = [], oldest
        columns = {name: list(shape) for name, shape in buffer.record_shapes().items()}
        while logged < buffer.written:
            if not self._files or self._files[-1][1] >= self.rows_per_file:
                self._files.append([logged, 0, 0])
            until = min(buffer.written, self._files[-1][0] + self.rows_per_file)
            self._write(buffer, logged, until, columns)
            logged = until
        needed = [list(file) for file in self._files if file[0] + file[1] > oldest]
        return {"written": buffer.written, "columns": columns, "files": needed}

    def restore(self, state: Mapping[str, Any], buffer: SteeringReplayBuffer) -> None:
        """Fill an empty buffer, and go on from there.

        Raises:
            DsrlError: when a file is missing or damaged, or its rows are those of another agent.
        """
        expected = buffer.record_shapes()
        shapes = {name: tuple(shape) for name, shape in state["columns"].items()}
        if shapes and shapes != expected:
            odd = next(name for name in {**shapes, **expected} if shapes.get(name) != expected.get(name))
            raise DsrlError(
                f"{self.folder} holds decisions whose '{odd}' has the shape {shapes.get(odd)}, this agent stores "
                f"{expected.get(odd)}; it was set up in another way"
            )
        self._files = [list(file) for file in state["files"]]
        oldest = state["written"] - min(state["written"], buffer.capacity)
        buffer.restore(state["written"], self._read(shapes, oldest))

    def check(self, state: Mapping[str, Any]) -> None:
        """Read all that a checkpoint needs, and compare it with its checksums.

        Raises:
            DsrlError: when a file is missing or damaged.
        """
        width = 4 * sum(prod(shape) for shape in state["columns"].values())
        for first, rows, checksum in state["files"]:
            found, size = 0, 0
            for block in self._blocks(first, rows * width, max(1, _AT_ONCE // max(width, 1)) * width):
                found, size = zlib.crc32(block, found), size + len(block)
            if size < rows * width:
                raise DsrlError(f"{self._path(first)} has {size:,} bytes, the checkpoint needs {rows * width:,}")
            if found != checksum:
                raise DsrlError(f"{self._path(first)} is damaged: its checksum is another one")

    def forget(self, before: int) -> None:
        """Remove the files that hold nothing but decisions before this one."""
        while len(self._files) > 1 and self._files[1][0] <= before:
            self._path(self._files.pop(0)[0]).unlink(missing_ok=True)

    def _write(self, buffer: SteeringReplayBuffer, start: int, until: int, columns: Mapping[str, list[int]]) -> None:
        """Rows ``start .. until`` at the end of the last file; nothing behind them stays."""
        first, have, checksum = self._files[-1]
        path, width = self._path(first), 4 * sum(prod(shape) for shape in columns.values())
        step = max(1, _AT_ONCE // width)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.truncate(have * width)
                file.seek(0, os.SEEK_END)
                for at in range(start, until, step):
                    block = _packed(buffer.record(at, min(at + step, until)), list(columns))
                    checksum = zlib.crc32(block, checksum)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        self._files[-1] = [first, have + until - start, checksum]

    def _read(self, shapes: Mapping[str, Sequence[int]], oldest: int) -> Iterator[dict[str, Tensor]]:
        width = 4 * sum(prod(shape) for shape in shapes.values())
        sizes = [prod(shape) for shape in shapes.values()]
        for first, rows, _ in self._files:
            skipped = max(0, oldest - first)
            if skipped >= rows:
                continue
            for block in self._blocks(first, rows * width, max(1, _AT_ONCE // width) * width, skipped * width):
                table = torch.from_numpy(np.frombuffer(block, dtype="<f4").reshape(-1, width // 4).copy())
                parts = table.split(sizes, dim=1)
                yield {
                    name: part.reshape(len(table), *shape)
                    for (name, shape), part in zip(shapes.items(), parts, strict=True)
                }

    def _blocks(self, first: int, length: int, size: int, skip: int = 0) -> Iterator[bytes]:
        path = self._path(first)
        if not path.exists():
            raise DsrlError(f"{path} is missing; it holds a part of the replay buffer")
        with path.open("rb") as file:
            file.seek(skip)
            for at in range(skip, length, size):
                yield file.read(min(size, length - at))

    def _path(self, first: int) -> Path:
        return self.folder / f"{first:012d}.rows"


def _packed(record: Mapping[str, Tensor], names: Sequence[str]) -> bytes:
    """One row of numbers per decision."""
    table = torch.cat(
        [record[name].flatten(1) if record[name].ndim > 1 else record[name][:, None] for name in names], 1
    )
    return table.cpu().numpy().astype("<f4", copy=False).tobytes()
