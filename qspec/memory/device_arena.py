"""The arena of a stack on a GPU: what kernels read lies there, what the host decides by lies in host memory.

Weights, KV blocks, tails and draft distributions are one ``CudaArena``. Leases, lengths and block tables are numbers
that the processors of both workers read and write one at a time: on the GPU each would be a transfer and a wait, so
they lie in a small ``HostArena`` beside it, and a pass takes what its kernels need along in the one copy that carries
its tokens. One descriptor tells both: the GPU's handle, and the host's part as its file 1, whose descriptor is handed
over like that of an arena on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from qspec.errors import ContractViolation
from qspec.interfaces import ArenaBackend, ArenaDescriptor, Region
from qspec.memory.arena import HostArena
from qspec.memory.budget import BudgetEntry
from qspec.memory.cuda_arena import CudaArena
from qspec.memory.layout import DEVICE_ALIGNMENT, ArenaLayout, RegionSpec

_HOST_FILE = 1


class DeviceArena:
    """``qspec.memory.attachment.Arena`` in two kinds of memory. Made by ``create`` (verifier) or ``open`` (drafter)."""

    def __init__(self, descriptor: ArenaDescriptor, on_gpu: CudaArena, on_host: HostArena) -> None:
        self.descriptor = descriptor
        self._on_gpu, self._on_host = on_gpu, on_host
        self._host_names = {region.name for region in descriptor.regions if region.file}

    @classmethod
    def create(
        cls, gpu_specs: Sequence[RegionSpec], host_specs: Sequence[RegionSpec], *, epoch: int,
        fingerprint_of: Callable[[tuple[Region, ...]], str], budget: Iterable[BudgetEntry] = (), device: int = 0,
    ) -> DeviceArena:
        """Allocate both parts, zeroed. ``fingerprint_of``: the fingerprint of an arena with some regions.

        Raises as ``CudaArena.create`` and ``HostArena.create``.
        """
        host_regions = tuple(replace(region, file=_HOST_FILE) for region in ArenaLayout.place(host_specs).regions)
        regions = (*ArenaLayout.place(gpu_specs, DEVICE_ALIGNMENT).regions, *host_regions)
        fingerprint = fingerprint_of(regions)
        on_gpu = CudaArena.create(gpu_specs, epoch=epoch, fingerprint=fingerprint, budget=budget, device=device)
        on_host = HostArena.create(host_specs, epoch=epoch, fingerprint=fingerprint)
        descriptor = replace(
            on_gpu.descriptor, reference=on_host.descriptor.reference, regions=regions,
            file_sizes=(on_host.descriptor.size,))
        return cls(descriptor, on_gpu, on_host)

    @classmethod
    def open(cls, descriptor: ArenaDescriptor) -> DeviceArena:
        """Map both parts as the drafter. Raises as ``CudaArena.open`` and ``HostArena.open``."""
        if len(descriptor.file_sizes) != 1 or any(region.file not in (0, _HOST_FILE) for region in descriptor.regions):
            raise ContractViolation("the descriptor of an arena on a GPU names other files than the host's part")
        gpu = tuple(region for region in descriptor.regions if not region.file)
        host = tuple(replace(region, file=0) for region in descriptor.regions if region.file)
        on_host = HostArena.open(replace(
            descriptor, backend=ArenaBackend.HOST_SHM, device_uuid="", handle=b"", size=descriptor.file_sizes[0],
            regions=host, file_sizes=()))
        try:
            on_gpu = CudaArena.open(replace(descriptor, reference="", regions=gpu, file_sizes=()))
        except BaseException:
            on_host.close()
            raise
        return cls(descriptor, on_gpu, on_host)

    @property
    def fds(self) -> tuple[int, ...]:
        """The host's part; the GPU's needs no descriptor."""
        return self._on_host.fds

    @property
    def is_mapped(self) -> bool:
        """Whether this process still holds memory of the GPU's part."""
        return self._on_gpu.is_mapped

    def tensor(self, name: str) -> Tensor:
        """The region ``name``, where it lies; no copy. ``KeyError`` if there is none."""
        return (self._on_host if name in self._host_names else self._on_gpu).tensor(name)

    def names(self) -> list[str]:
        """Names of all regions."""
        return [region.name for region in self.descriptor.regions]

    def close(self) -> None:
        """Let go of both; memory goes with the last tensor over it. Harmless when repeated."""
        self._on_gpu.close()
        self._on_host.close()
