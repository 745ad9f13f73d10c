"""A file of tensors that is written once, and from then on only mapped.

=================  ====================================================================================================
first 4096 bytes   magic, version, where the table is and its CRC-32 (``_PREFIX``); the rest is zero
data               the tensors as they lie in memory, each at a multiple of 64 bytes
table              JSON: fingerprint of what it was made from, regions, notes for people, a CRC-32 of each 4 MiB of data
=================  ====================================================================================================

The file appears under its name as a whole (written beside it, synchronised, renamed) or not at all. Whoever opens it
checks the table and all sizes, and the data up to ``_CHECKED_BYTES``: a larger file is checked in chunks spread evenly
over it. Checking it all would read it all at every start (6 s for 14 GB in memory, a minute from a disk), against a
fault that copying a cache or a full disk makes in long runs, which a sample over the whole file meets.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from qspec.errors import ContractViolation
from qspec.interfaces import Region, RegionWriter
from qspec.memory.layout import ArenaLayout, RegionSpec, region_bytes
from qspec.memory.mapped_file import MappedFile

_MAGIC, _VERSION = b"QSPECWTS", 1
_PREFIX = struct.Struct("<8sIQQI")  # magic, version, first byte of the table, its length, its CRC-32
_DATA_START = 4096
_CHUNK = 4 << 20
_CHECKED_BYTES = 512 << 20
"""Data that is checked at every start: a quarter of a second."""


class StoreDamaged(Exception):
    """A file is no whole store, or not the one that was looked for; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class WeightStore:
    """An open store."""

    file: MappedFile
    notes: tuple[str, ...]
    """What was worth telling when it was made."""


def place_regions(specs: Sequence[RegionSpec], file: int) -> tuple[Region, ...]:
    """Where a store keeps these tensors, as regions of an arena's file number ``file``."""
    return tuple(
        Region(name=region.name, dtype=region.dtype, shape=region.shape, offset=_DATA_START + region.offset,
               writer=RegionWriter.VERIFIER, file=file)
        for region in ArenaLayout.place(specs).regions
    )


def open_store(path: Path, fingerprint: str, regions: Sequence[Region]) -> WeightStore:
    """Map the store at ``path``. ``FileNotFoundError``; ``StoreDamaged`` when it does not hold just these regions."""
    try:
        file = MappedFile.open(path)
    except ContractViolation as error:
        raise StoreDamaged("it is empty") from error
    try:
        return WeightStore(file, _checked(file, fingerprint, regions))
    except BaseException:
        file.close()
        raise


class StoreWriter:
    """A context manager that writes a store; left with an exception, it leaves nothing behind.

    ``OSError`` when there is no room, which is found out before anything is written where the file system can say so.
    """

    def __init__(self, path: Path, fingerprint: str, regions: Sequence[Region]) -> None:
        self._path, self._fingerprint = path, fingerprint
        self._partial = path.with_name(f".{path.name}.partial")
        self._regions = {region.name: region for region in regions}
        self._missing = set(self._regions)
        self._end = max(region.offset + region_bytes(region) for region in regions)
        self._notes: list[str] = []

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one region; ``tensor`` has the dtype and shape that it was placed with."""
        region = self._regions[name]
        if (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) != (region.dtype, region.shape):
            raise ValueError(f"{name} was announced as {region}, got {tensor.dtype} {tuple(tensor.shape)}")
        values = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        _write_all(self._fd, values.data, region.offset)
        self._missing.discard(name)

    def note(self, text: str) -> None:
        """Keep a line to tell people whenever the store is opened."""
        self._notes.append(text)

    def __enter__(self) -> StoreWriter:
        self._fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(self._fd, 0, self._end)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot say: writing will
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._missing:
                    raise ValueError(f"regions announced but not written: {sorted(self._missing)}")
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        """Write table and prefix, make sure that they are on the disk, and give the file its name."""
        table = {
            "fingerprint": self._fingerprint, "regions": _table(self._regions.values()), "notes": self._notes,
            "checksums": [zlib.crc32(os.pread(self._fd, length, first)) for first, length in _chunks(self._end)],
        }
        encoded = json.dumps(table).encode()
        _write_all(self._fd, memoryview(encoded), self._end)
        prefix = _PREFIX.pack(_MAGIC, _VERSION, self._end, len(encoded), zlib.crc32(encoded))
        _write_all(self._fd, memoryview(prefix), 0)
        os.fsync(self._fd)
        self._partial.replace(self._path)

    def _discard(self) -> None:
        """Close the file, and remove it unless it was renamed."""
        os.close(self._fd)
        self._partial.unlink(missing_ok=True)


def _checked(file: MappedFile, fingerprint: str, regions: Sequence[Region]) -> tuple[str, ...]:
    """The notes of a store that is whole, and the one that is looked for; else ``StoreDamaged``."""
    assert file.mapping is not None
    data = memoryview(file.mapping)
    if file.size < _DATA_START or bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise StoreDamaged("it is no file of weights")
    _, version, end, length, checksum = _PREFIX.unpack_from(data)
    if version != _VERSION:
        raise StoreDamaged(f"it has version {version} instead of {_VERSION}")
    if file.size != end + length:
        raise StoreDamaged(f"it has {file.size} bytes instead of {end + length}")
    if zlib.crc32(data[end:]) != checksum:
        raise StoreDamaged("its table does not have its checksum")
    table = json.loads(bytes(data[end:]))
    if table["fingerprint"] != fingerprint or table["regions"] != _table(regions):
        raise StoreDamaged("it was made of another model or in another layout")
    chunks = list(_chunks(end))
    step = -(-len(chunks) * _CHUNK // _CHECKED_BYTES)
    for (first, size), expected in list(zip(chunks, table["checksums"], strict=True))[:: max(step, 1)]:
        if zlib.crc32(data[first : first + size]) != expected:
            raise StoreDamaged(f"its data do not have their checksum near byte {first}")
    return tuple(table["notes"])


def _table(regions: Iterable[Region]) -> list[list[object]]:
    return [[region.name, region.dtype, list(region.shape), region.offset] for region in regions]


def _chunks(end: int) -> list[tuple[int, int]]:
    """First byte and length of each piece of the data that has a checksum."""
    return [(first, min(_CHUNK, end - first)) for first in range(_DATA_START, end, _CHUNK)]


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
