"""The zip file that ``torch.save`` writes, read record by record, each against its checksum.

``torch.load`` checks no checksum and reads all or nothing, runs TorchScript archives and unpacks tar files; a
checkpoint of another program is read from here, and only the tensors that are asked for.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from dsrl.errors import DsrlError
from dsrl.pretrained.allowlist import StoredTensor

_ENCRYPTED = 1
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class TorchArchive:
    """Records of a file, mapped from the disk.

    Raises:
        DsrlError: when it is truncated, damaged or no file of ``torch.save``.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
                entries = archive.infolist()
        except Exception as error:  # zipfile raises many kinds for a broken file
            raise DsrlError(
                f"{path} is truncated or no torch file ({error!s:.100}). Copy it again; if torch before 1.6 wrote it, "
                "load and save it once with a newer one"
            ) from error
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or len(self._entries) != len(entries):
            raise DsrlError(f"{path} is a zip file, but none of torch.save (found: {sorted(self._entries)[:4]})")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._entries and bytes(self._record("byteorder")) != b"little":
            raise DsrlError(f"{path} was written by a machine of another byte order; save it again on this one")

    def pickle(self) -> bytes:
        """What describes the content.

        Raises:
            DsrlError: when it is damaged.
        """
        return bytes(self._record("data.pkl"))

    def tensor(self, stored: StoredTensor) -> Tensor:
        """The numbers of a tensor, mapped from the disk where that is possible.

        Raises:
            DsrlError: when they are damaged, missing, or not as many as the shape says.
        """
        storage, name = stored.storage, f"data/{stored.storage.key}"
        width = torch.empty(0, dtype=storage.dtype).element_size()
        record = self._record(name)
        if len(record) != storage.numel * width:
            raise DsrlError(f"{self.path}: the record '{name}' has {len(record)} bytes, not {storage.numel} x {width}")
        numel = math.prod(stored.size)
        last = sum((length - 1) * step for length, step in zip(stored.size, stored.stride, strict=True))
        # more numbers than are stored would be a small file that fills the memory
        if numel > storage.numel or (numel and stored.offset + last >= storage.numel):
            raise DsrlError(
                f"{self.path}: the record '{name}' holds {storage.numel} numbers, its tensor of shape "
                f"{list(stored.size)} reads others"
            )
        if not numel:
            return torch.empty(stored.size, dtype=storage.dtype)
        start = self._start(name)
        if start % width:
            flat = torch.frombuffer(bytearray(record), dtype=storage.dtype)
        else:
            flat = torch.frombuffer(self._bytes, dtype=storage.dtype, count=storage.numel, offset=start)
        return flat.as_strided(stored.size, stored.stride, stored.offset).contiguous()

    def _start(self, name: str) -> int:
        """Where the content of a record begins."""
        offset = self._entries[self._folder + name].header_offset
        try:
            magic, name_length, extra_length = _LOCAL_HEADER.unpack_from(self._bytes, offset)
        except struct.error:
            magic, name_length, extra_length = b"", 0, 0
        if magic != b"PK\x03\x04":
            raise DsrlError(f"{self.path} is damaged: there is no record '{name}' where there should be; copy it again")
        return offset + _LOCAL_HEADER.size + name_length + extra_length

    def _record(self, name: str) -> memoryview:
        entry = self._entries.get(self._folder + name)
        if entry is None:
            raise DsrlError(f"{self.path} lacks the record '{name}'; copy it again")
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or entry.flag_bits & _ENCRYPTED:
            raise DsrlError(f"{self.path}: the record '{name}' is compressed or encrypted, which torch.save never does")
        start = self._start(name)
        content = memoryview(self._bytes)[start : start + entry.file_size]
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise DsrlError(f"{self.path} is damaged: the checksum of the record '{name}' is wrong; copy it again")
        return content
