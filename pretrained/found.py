"""What lies at a path, found out without running anything that stands in it."""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dsrl.errors import DsrlError, nearest
from dsrl.pretrained.scalars import NUMPY_SCALARS


class Found:
    """A file or folder that may be a checkpoint.

    Raises:
        DsrlError: when there is nothing at ``path``.
    """

    def __init__(self, path: Path):
        self.path = path
        self._summed = False
        if not path.exists():
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise DsrlError(f"no checkpoint at {path}.{nearest(path.name, near)} `dsrl pretrain` makes one.")

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, such as those of LeRobot and diffusers."""
        return self.path.is_dir()

    @cached_property
    def imports(self) -> list[str]:
        """What unpickling would import, ``module.name``, in order; opcodes are only read, none is executed."""
        return [] if self.is_folder else _imported_names(self.path)

    @cached_property
    def content(self) -> Any:
        """What a torch file holds, tensors mapped from the disk; None for a folder and for what torch does not read."""
        return None if self.is_folder or self._read_error() else self._read

    def read(self) -> Any:
        """:attr:`content`, or the reason why there is none.

        Raises:
            DsrlError: when it is no torch file, is damaged, or wants to import something.
        """
        error = self._read_error()
        if error is None:
            self._check_sums()
            return self._read
        harmless = ("torch.", "collections.", "_codecs.encode", *NUMPY_SCALARS)
        suspects = [name for name in self.imports if not name.startswith(harmless)]
        if isinstance(error, pickle.UnpicklingError) and suspects:
            raise DsrlError(
                f"{self.path} wants to run '{suspects[0]}' while it is read; that is refused and nothing was executed. "
                "A checkpoint holds tensors and plain values only."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DsrlError(f"{self.path} is truncated or no torch file ({reason:.120})") from error

    def _check_sums(self) -> None:
        """Torch does not look at the checksums of a mapped file; a flipped bit would make another policy."""
        if self._summed or not zipfile.is_zipfile(self.path):
            return
        try:
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()
        except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
            damaged = f"its directory ({error})"
        if damaged:
            raise DsrlError(f"{self.path} is damaged: the checksum of {damaged} is wrong; copy or download it again")
        self._summed = True

    def _read_error(self) -> Exception | None:
        try:
            _ = self._read
        except Exception as error:  # torch raises many kinds for a broken file
            return error
        return None

    @cached_property
    def _read(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of a file that is refused anyway
            mapped = zipfile.is_zipfile(self.path)
            safe: list[Any] = [(stand_in, name) for name, stand_in in NUMPY_SCALARS.items()]
            with torch.serialization.safe_globals(safe):
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)


def _imported_names(path: Path) -> list[str]:
    names: list[str] = []
    strings: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        else:
            content = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # zipfile and pickletools raise many kinds for a broken file
        pass  # not a pickle, or not to its end
    return names
