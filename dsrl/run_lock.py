"""One writer per run folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from dsrl.errors import DsrlError
from dsrl.files import writing

try:
    import fcntl
except ImportError:  # Windows has no such lock; two writers are then not noticed
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made when it is not there; the system lets go of it when the process dies.

    Raises:
        DsrlError: when another process holds it, with its number and machine.
        RunFailed: when the folder cannot be written to.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _hold(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)
        with suppress(OSError):  # nothing was written into it
            folder.rmdir()


def _hold(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise DsrlError(
                f"{path.parent} is being written by {owner}; end that run first, or choose another --run-dir"
            ) from error
        # the one before may have removed the file between the two calls
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                break
        os.close(file)
    stamp = datetime.now().isoformat(" ", "seconds")
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()} since {stamp}\n".encode())
    return file
