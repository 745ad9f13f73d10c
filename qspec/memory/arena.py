"""The arena on host memory: one anonymous file that both workers map, and the files that the weights lie in.

The verifier creates it (``memfd``: no name in any file system, no limit but memory itself), allocates every page up
front, so that a machine without the memory says so at start instead of dying later, and hands its file descriptor
over a Unix socket (``fd_passing``). Whatever way the processes end, the kernel frees the memory with the last of them.
The drafter maps everything but its own regions read-only.

The weights are no part of that memory: they are regions in files of the cache (``mapped_file``), whose descriptors go
to the drafter beside the anonymous file's. It maps the very files that the verifier opened, whatever their paths mean
to it, or whether somebody replaced them meanwhile.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence

from torch import Tensor

from qspec.errors import ContractViolation, OutOfMemory
from qspec.interfaces import ArenaBackend, ArenaDescriptor
from qspec.memory.available import available_memory
from qspec.memory.fd_passing import receive_fds
from qspec.memory.layout import ArenaLayout, RegionSpec, writable_boundary
from qspec.memory.mapped_file import MappedFile, MappedRegions, tensor_at

_ATTACH_TIMEOUT_S = 10.0


class HostArena:
    """Shared host memory with named tensors. Create it with ``create`` (verifier) or ``open`` (drafter)."""

    def __init__(
        self, descriptor: ArenaDescriptor, fd: int, maps: Sequence[tuple[int, mmap.mmap]], weights: MappedRegions
    ) -> None:
        self.descriptor = descriptor
        self.fd = fd
        self._maps = list(maps)  # (first byte, mapping), ascending
        self._weights = weights
        self._regions = {region.name: region for region in descriptor.regions}

    @classmethod
    def create(
        cls, specs: Sequence[RegionSpec], *, epoch: int, fingerprint: str, weights: MappedRegions | None = None
    ) -> HostArena:
        """Allocate and zero an arena for ``specs``; ``OutOfMemory`` when it does not fit (see also ``budget``).

        ``weights`` become regions of it, and are closed with it, or when it cannot be made.
        """
        layout, weights = ArenaLayout.place(specs), weights or MappedRegions((), ())
        if layout.size > (available := available_memory()):  # the kernel would grant it, and kill someone later
            weights.close()
            raise OutOfMemory(
                f"an arena of {layout.size / 2**20:.0f} MiB does not fit into the {available / 2**20:.0f} MiB available"
            )
        fd = _anonymous_file()
        try:
            os.posix_fallocate(fd, 0, layout.size)
            mapping = mmap.mmap(fd, layout.size)
        except OSError as error:
            os.close(fd)
            weights.close()
            raise OutOfMemory(f"cannot allocate {layout.size / 2**20:.0f} MiB of shared memory: {error}") from error
        descriptor = ArenaDescriptor(
            backend=ArenaBackend.HOST_SHM,
            device_uuid="",
            handle=b"",
            reference="fd:" + ",".join(str(given) for given in (fd, *(file.fd for file in weights.files))),
            size=layout.size,
            epoch=epoch,
            fingerprint=fingerprint,
            regions=(*weights.regions, *layout.regions),
            file_sizes=tuple(file.size for file in weights.files),
        )
        return cls(descriptor, fd, [(0, mapping)], weights)

    @classmethod
    def open(cls, descriptor: ArenaDescriptor) -> HostArena:
        """Map an arena as the drafter: its own regions writable, the rest read-only."""
        if descriptor.backend is not ArenaBackend.HOST_SHM:
            raise ContractViolation(f"this drafter cannot map an arena of kind {descriptor.backend.value}")
        fd, *file_fds = _descriptors(descriptor.reference)
        files: list[MappedFile] = []
        try:
            while file_fds:
                files.append(MappedFile(file_fds.pop(0)))
            if (os.fstat(fd).st_size, *(file.size for file in files)) != (descriptor.size, *descriptor.file_sizes):
                raise ContractViolation("the arena's files have other sizes than in its descriptor")
            own = [region for region in descriptor.regions if not region.file]
            boundary = writable_boundary(own, descriptor.size)
            maps = []
            if boundary > 0:
                maps.append((0, mmap.mmap(fd, boundary, prot=mmap.PROT_READ)))
            if boundary < descriptor.size:
                maps.append((boundary, mmap.mmap(fd, descriptor.size - boundary, offset=boundary)))
        except BaseException:
            for unused in (fd, *file_fds):
                os.close(unused)
            for file in files:
                file.close()
            raise
        return cls(descriptor, fd, maps, MappedRegions(files, [region for region in descriptor.regions if region.file]))

    @property
    def fds(self) -> tuple[int, ...]:
        """What another process needs to map it: the anonymous file, then those of the weights."""
        return (self.fd, *(file.fd for file in self._weights.files))

    def tensor(self, name: str) -> Tensor:
        """The region ``name`` as a tensor over the shared memory; no copy. ``KeyError`` if there is none."""
        region = self._regions[name]
        if region.file:
            return self._weights.tensor(name)
        first, mapping = next(item for item in reversed(self._maps) if item[0] <= region.offset)
        return tensor_at(mapping, region, region.offset - first)

    def names(self) -> list[str]:
        """Names of all regions."""
        return list(self._regions)

    def close(self) -> None:
        """Let go of the files; the mappings go when the last tensor over them does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._maps.clear()
        self._weights.close()


def _descriptors(reference: str) -> list[int]:
    """Descriptors of one's own for what an arena consists of."""
    kind, _, place = reference.partition(":")
    if kind == "fd":
        return [os.dup(int(number)) for number in place.split(",")]
    if kind == "unix":
        return receive_fds(place, _ATTACH_TIMEOUT_S)
    raise ContractViolation("the arena's reference is neither fd:N nor unix:PATH")


def _anonymous_file() -> int:
    """A file without a name, closed on exec."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("qspec-arena", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
