"""Files that are mapped read-only, and tensors in them.

The kernel keeps one copy of a file's pages, whoever maps it: two workers, and all stacks on a host. It reads them when
they are first touched, and may drop them again when memory is short, because the file still has them. Every mapping is
``PROT_READ``: a write ends the process instead of spoiling everybody's weights.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from qspec.errors import ContractViolation
from qspec.interfaces import Region
from qspec.memory.layout import region_bytes


class MappedFile:
    """A whole file, mapped; tensors over it keep the mapping after ``close``."""

    def __init__(self, fd: int) -> None:
        """``fd`` becomes this object's, also when an ``OSError`` is raised. ``ContractViolation`` for an empty file."""
        self.fd, self.size = fd, os.fstat(fd).st_size
        if self.size == 0:
            self.close()
            raise ContractViolation("a file of weights is empty")
        try:
            self.mapping: mmap.mmap | None = mmap.mmap(fd, self.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except OSError:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path) -> MappedFile:
        """Map the file at ``path``; ``OSError`` when there is none that can be read."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def read_ahead(self, first: int, length: int) -> None:
        """Have the kernel read these bytes now where they are not cached, in long runs instead of page by page."""
        if self.mapping is not None:
            start = first - first % mmap.PAGESIZE
            with contextlib.suppress(OSError):  # advice only
                self.mapping.madvise(mmap.MADV_WILLNEED, start, first + length - start)

    def close(self) -> None:
        """Let go of the file; its mapping goes with the last tensor. Harmless when repeated."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.mapping = -1, None


class MappedRegions:
    """Named read-only tensors in a few files; region n lies in ``files[region.file - 1]``."""

    def __init__(self, files: Sequence[MappedFile], regions: Sequence[Region]) -> None:
        self.files, self.regions = tuple(files), tuple(regions)
        self._regions = {region.name: region for region in regions}

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``; no copy. ``KeyError`` if there is none."""
        region = self._regions[name]
        mapping = self.files[region.file - 1].mapping
        if mapping is None:
            raise ContractViolation("the weights were closed")
        return tensor_at(mapping, region, region.offset)

    def close(self) -> None:
        """Let go of the files. Harmless when repeated."""
        for file in self.files:
            file.close()


def tensor_at(mapping: mmap.mmap, region: Region, offset: int) -> Tensor:
    """A region as a tensor over a mapping that it begins at byte ``offset`` of; no copy."""
    dtype = getattr(torch, region.dtype)
    with warnings.catch_warnings():
        # Read-only is what most mappings are meant to be; torch warns that writing to them would crash.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(mapping, dtype=dtype, count=region_bytes(region) // dtype.itemsize, offset=offset)
    return flat.view(region.shape)
