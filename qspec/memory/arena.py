"""The arena on host memory: one anonymous file that both workers map.

The verifier creates it (``memfd``: no name in any file system, no limit but memory itself), allocates every page up
front, so that a machine without the memory says so at start instead of dying later, and hands its file descriptor
over a Unix socket (``fd_passing``). Whatever way the processes end, the kernel frees the memory with the last of them.
The drafter maps everything but its own regions read-only.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from qspec.errors import ContractViolation, OutOfMemory
from qspec.interfaces import ArenaBackend, ArenaDescriptor
from qspec.memory.available import available_memory
from qspec.memory.fd_passing import receive_fd
from qspec.memory.layout import ArenaLayout, RegionSpec, region_bytes, writable_boundary

_ATTACH_TIMEOUT_S = 10.0


class HostArena:
    """Shared host memory with named tensors. Create it with ``create`` (verifier) or ``open`` (drafter)."""

    def __init__(self, descriptor: ArenaDescriptor, fd: int, maps: Sequence[tuple[int, mmap.mmap]]) -> None:
        self.descriptor = descriptor
        self.fd = fd
        self._maps = list(maps)  # (first byte, mapping), ascending
        self._regions = {region.name: region for region in descriptor.regions}

    @classmethod
    def create(cls, specs: Sequence[RegionSpec], *, epoch: int, fingerprint: str) -> HostArena:
        """Allocate and zero an arena for ``specs``; ``OutOfMemory`` when it does not fit (see also ``budget``)."""
        layout = ArenaLayout.place(specs)
        if layout.size > (available := available_memory()):  # the kernel would grant it, and kill someone later
            raise OutOfMemory(
                f"an arena of {layout.size / 2**20:.0f} MiB does not fit into the {available / 2**20:.0f} MiB available"
            )
        fd = _anonymous_file()
        try:
            os.posix_fallocate(fd, 0, layout.size)
            mapping = mmap.mmap(fd, layout.size)
        except OSError as error:
            os.close(fd)
            raise OutOfMemory(f"cannot allocate {layout.size / 2**20:.0f} MiB of shared memory: {error}") from error
        descriptor = ArenaDescriptor(
            backend=ArenaBackend.HOST_SHM,
            device_uuid="",
            handle=b"",
            reference=f"fd:{fd}",
            size=layout.size,
            epoch=epoch,
            fingerprint=fingerprint,
            regions=layout.regions,
        )
        return cls(descriptor, fd, [(0, mapping)])

    @classmethod
    def open(cls, descriptor: ArenaDescriptor) -> HostArena:
        """Map an arena as the drafter: its own regions writable, the rest read-only."""
        if descriptor.backend is not ArenaBackend.HOST_SHM:
            raise ContractViolation(f"this drafter cannot map an arena of kind {descriptor.backend.value}")
        kind, _, place = descriptor.reference.partition(":")
        if kind == "fd":
            fd = os.dup(int(place))
        elif kind == "unix":
            fd = receive_fd(place, _ATTACH_TIMEOUT_S)
        else:
            raise ContractViolation("the arena's reference is neither fd:N nor unix:PATH")
        try:
            if os.fstat(fd).st_size != descriptor.size:
                raise ContractViolation("the arena's file has another size than its descriptor")
            boundary = writable_boundary(descriptor.regions, descriptor.size)
            maps = []
            if boundary > 0:
                maps.append((0, mmap.mmap(fd, boundary, prot=mmap.PROT_READ)))
            if boundary < descriptor.size:
                maps.append((boundary, mmap.mmap(fd, descriptor.size - boundary, offset=boundary)))
        except BaseException:
            os.close(fd)
            raise
        return cls(descriptor, fd, maps)

    def tensor(self, name: str) -> Tensor:
        """The region ``name`` as a tensor over the shared memory; no copy. ``KeyError`` if there is none."""
        region = self._regions[name]
        first, mapping = next(item for item in reversed(self._maps) if item[0] <= region.offset)
        count = region_bytes(region) // getattr(torch, region.dtype).itemsize
        with warnings.catch_warnings():
            # A read-only mapping is what the drafter is meant to have; torch warns that writing to it would crash.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(
                mapping, dtype=getattr(torch, region.dtype), count=count, offset=region.offset - first
            )
        return flat.view(region.shape)

    def names(self) -> list[str]:
        """Names of all regions."""
        return list(self._regions)

    def close(self) -> None:
        """Let go of the file; the mappings go when the last tensor over them does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._maps.clear()


def _anonymous_file() -> int:
    """A file without a name, closed on exec."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("qspec-arena", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
