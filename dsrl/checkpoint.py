"""Checkpoints of a run: whole or not there, the newest two, and none that was damaged is taken for sound."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsrl.errors import DsrlError
from dsrl.files import replacing
from dsrl.replay import SteeringReplayBuffer
from dsrl.replay_log import ReplayLog
from dsrl.run import RunFolder
from dsrl.tree_file import DAMAGE, from_bytes, to_bytes

FORMAT = 1
_NAME = re.compile(r"(\d{9})-([0-9a-f]{16})\.safetensors")
_KEPT = 2


class Checkpoints:
    """The folder ``state/`` of a run: ``NUMBER-CHECKSUM.safetensors``, and the replay buffer beside them.

    A checkpoint is written aside, synced and renamed. It holds plain values and tensors; reading it runs no code.
    """

    def __init__(self, run: RunFolder):
        self.run = run
        self.folder = run.state
        self.log = ReplayLog(self.folder / "replay")
        self._number = 0
        self._oldest_needed: list[int] = []
        self._unsound: list[Path] = []

    def save(self, state: Mapping[str, Any], buffer: SteeringReplayBuffer | None) -> None:
        """Write a checkpoint, then remove all but the newest two.

        Raises:
            RunFailed: when it cannot be written; the one before is intact.
        """
        replay = None
        if buffer is not None:
            replay = self.log.append(buffer)
            self._oldest_needed = [*self._oldest_needed[1 - _KEPT :], buffer.written - buffer.rows]
        for table in (self.run.evaluations_path, self.run.metrics_path):
            _sync(table)
        rows = self.run.count_rows()
        data = to_bytes({"format": FORMAT, "state": state, "replay": replay, "rows": rows})
        self._number += 1
        path = self.folder / f"{self._number:09d}-{_checksum(data)}.safetensors"
        with replacing(path) as aside, aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync(self.folder)
        for damaged in self._unsound:
            damaged.unlink(missing_ok=True)
        for old in self.paths()[:-_KEPT]:
            old.unlink(missing_ok=True)
        self._unsound = []
        if self._oldest_needed:
            self.log.forget(self._oldest_needed[0])

    def newest(self, report: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest sound checkpoint, as it was given to :meth:`save`; None when there is none at all.

        Args:
            report: is told of every one that is damaged.

        Raises:
            DsrlError: when there are some and all are damaged, or one was written by a newer version.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                found = self._read(path)
            except _Newer:
                raise
            except DsrlError as damage:
                report(f"{damage}; the checkpoint before it is used")
                self._unsound.append(path)
                continue
            self._number = int(paths[-1].name[:9])
            return found
        if paths:
            raise DsrlError(
                f"{self.folder} holds {len(paths)} checkpoints, and all of them are damaged; the agents of this run "
                "are still there, but it cannot go on"
            )
        return None

    def restore_buffer(self, checkpoint: Mapping[str, Any], buffer: SteeringReplayBuffer) -> None:
        """Fill an empty buffer with what it held.

        Raises:
            DsrlError: when its rows are those of another agent.
        """
        self.log.restore(checkpoint["replay"], buffer)
        self._oldest_needed = [buffer.written - buffer.rows]

    def paths(self) -> list[Path]:
        """All checkpoints, the oldest first."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(entry for entry in entries if _NAME.fullmatch(entry.name))

    def _read(self, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        if path.stem[-16:] != _checksum(data):
            raise DsrlError(f"{path} is damaged: its checksum is another one")
        try:
            found = from_bytes(data)
        except DAMAGE as error:
            raise DsrlError(f"{path} is damaged: {error}") from error
        if found["format"] > FORMAT:
            raise _Newer(f"{path} has format {found['format']}, this dsrl reads up to {FORMAT}; install a newer dsrl")
        if found["replay"] is not None:
            self.log.check(found["replay"])
        for name, count in self.run.count_rows().items():
            if count["rows"] < found["rows"][name]["rows"]:
                raise DsrlError(
                    f"{path} was written when {name}.csv had {found['rows'][name]['rows']} rows, now it has "
                    f"{count['rows']}"
                )
        return found


class _Newer(DsrlError):
    """Nothing is damaged."""


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _sync(path: Path) -> None:
    """Bring a file or a folder down to the disk, where the system can."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
