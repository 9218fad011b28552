"""Files that are whole or not there, and tables that grow."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsrl.errors import DsrlError, RunFailed


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into a message.

    Raises:
        RunFailed: when the disk is full, or the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"the disk is full: {path} could not be written. What was written before is intact; "
                "free some space and start again"
            ) from error
        raise RunFailed(
            f"{path} could not be written: {error.strerror or error}. What was written before is intact"
        ) from error


def check_out(path: Path, overwrite: bool) -> None:
    """Whether a file may be written, before the work that makes it.

    Raises:
        DsrlError: when it exists and is not to be replaced, is a folder, or lies where nothing can be written.
    """
    if path.is_dir():
        raise DsrlError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise DsrlError(f"{path} exists; choose another name, or replace it with --overwrite")
    there = nearest_existing(path.parent)
    if problem := why_not_writable(there):
        raise DsrlError(f"{path} cannot be written: {there}: {problem}; choose another place")


def checkpoint_file(out: Path) -> Path:
    """Where a checkpoint goes that is to be called ``out``: a name without suffix is a folder that gets a ckpt.pt."""
    return out if out.suffix else out / "ckpt.pt"


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def why_not_writable(folder: Path) -> str:
    """What keeps a new file out of it; empty when nothing does."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, with the same suffix, that takes its place when the block ends well.

    The folder is made when it is not there.

    Raises:
        RunFailed: when it cannot be written; ``path`` is then what it was before.
    """
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # such as a folder that could not be made
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a new empty folder beside ``path`` that takes its place when the block ends well.

    Raises:
        RunFailed: when it cannot be written; ``path`` is then what it was before.
    """
    path = path.absolute()  # "." has no name
    temporary, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)  # of a write that was killed
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except OSError:
                if old.exists():
                    os.replace(old, path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by ``text``, or leave it as it was.

    Raises:
        RunFailed: when it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def append_text(path: Path, text: str) -> None:
    """Add ``text`` at the end of a file of whole lines; of a write that fails half-way nothing stays.

    Raises:
        RunFailed: when it cannot be written.
    """
    with writing(path):
        size = _whole_lines(path)
        if path.exists():
            os.truncate(path, size)  # a line that a crash cut off would swallow this one
        try:
            with path.open("a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file with a header; a column that is new is added to all earlier rows, empty.

    Raises:
        RunFailed: when it cannot be written.
    """
    header = _header(path)
    columns = [*header, *(name for name in row if name not in header)]
    if columns != header:
        earlier = [[old[name] for name in header] + [""] * (len(columns) - len(header)) for old in read_rows(path)]
        write_text(path, csv_text([columns, *earlier]))
    append_text(path, csv_text([[row.get(name) for name in columns]]))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header; none when there is no file. A line cut off by a crash is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole), restval=""))


def table_size(path: Path) -> dict[str, Any]:
    """``rows`` and ``columns`` of a CSV file with a header, without reading its numbers; lines that are whole count."""
    lines = 0
    if path.exists():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
    return {"rows": max(lines - 1, 0), "columns": _header(path)}


def keep_rows(path: Path, rows: int, columns: list[str]) -> None:
    """Drop the rows and columns of a CSV file that came after :func:`table_size`; the file itself, if it had no header.

    Raises:
        RunFailed: when it cannot be written.
    """
    if table_size(path) == {"rows": rows, "columns": columns}:
        return
    if not columns:
        with writing(path):
            path.unlink(missing_ok=True)
        return
    kept = [[row[name] for name in columns] for row in read_rows(path)[:rows]]
    write_text(path, csv_text([columns, *kept]))


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV; None is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def _whole_lines(path: Path) -> int:
    """Length in bytes up to the last line feed."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        end = file.tell()
        # backwards in blocks: a table of metrics may be long
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
