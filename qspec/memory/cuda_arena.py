"""The arena on a GPU: one ``cudaMalloc`` that both workers map through one CUDA IPC handle.

The verifier allocates it, after asking whether all that the stack needs fits, and gives the handle (64 bytes) to the
drafter. Everything lies in it, the weights included, at the places that ``ArenaLayout`` gives: the same layout as on
host memory, at coarser multiples. CUDA maps memory for reading and writing only, so what the drafter must not write is
a rule here, where on host memory the kernel enforces it.

A mapping outlives its exporter, and the address of a freed arena may be given to the next one, whose handle then can
look like the old one's. So the memory itself says whose it is: a *stamp* behind the last region holds the epoch, and
whoever maps the memory compares it with the descriptor's.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qspec.errors import ContractViolation, EpochMismatch, InvalidInput
from qspec.interfaces import ArenaBackend, ArenaDescriptor
from qspec.memory.budget import BudgetEntry, BudgetLine, require_memory
from qspec.memory.cuda_runtime import DEVICE_UNINITIALIZED, CudaFailure, CudaRuntime, cuda_runtime
from qspec.memory.device_block import DeviceBlock
from qspec.memory.layout import DEVICE_ALIGNMENT, PAGE, ArenaLayout, RegionSpec, region_bytes

STAMP_BYTES = PAGE
"""Behind the regions, so that these keep the places that their layout gives them."""
_MAGIC = 0x5153504543  # "QSPEC"


class CudaArena:
    """Shared GPU memory with named tensors. Create it with ``create`` (verifier) or ``open`` (drafter)."""

    def __init__(self, descriptor: ArenaDescriptor, block: DeviceBlock, runtime: CudaRuntime) -> None:
        self.descriptor = descriptor
        self._block: DeviceBlock | None = block
        self._memory = weakref.ref(block)
        self._runtime = runtime
        self._regions = {region.name: region for region in descriptor.regions}

    @classmethod
    def create(
        cls, specs: Sequence[RegionSpec], *, epoch: int, fingerprint: str, budget: Iterable[BudgetEntry] = (),
        device: int = 0, runtime: CudaRuntime | None = None,
    ) -> CudaArena:
        """Allocate and zero an arena for ``specs`` on the GPU number ``device``.

        ``budget``: all that the stack is going to hold there, the arena included, contexts that exist left out;
        ``OutOfMemory`` with its table, before anything is allocated, when it does not fit. ``InvalidInput`` without
        a GPU; ``CudaFailure``.
        """
        runtime = runtime or cuda_runtime()
        uuid = runtime.device_uuid(device)
        layout = ArenaLayout.place(specs, DEVICE_ALIGNMENT)
        size = layout.size + STAMP_BYTES
        lines = list(budget) or [BudgetLine("arena", "arena", size, shared=True)]
        require_memory(lines, runtime.free_memory(device))
        block = runtime.allocate(device, size)
        descriptor = ArenaDescriptor(
            backend=ArenaBackend.CUDA_IPC, device_uuid=uuid, handle=runtime.export(block), reference="", size=size,
            epoch=epoch, fingerprint=fingerprint, regions=layout.regions,
        )
        arena = cls(descriptor, block, runtime)
        arena._stamp().copy_(torch.tensor([_MAGIC, epoch]))
        runtime.synchronize(device)
        return arena

    @classmethod
    def open(cls, descriptor: ArenaDescriptor, *, runtime: CudaRuntime | None = None) -> CudaArena:
        """Map an arena as the drafter, on whichever visible GPU it lies.

        ``InvalidInput`` when no visible GPU is the arena's, or when containers stand in the way; ``EpochMismatch``
        when the arena is no more; ``ContractViolation`` for a descriptor that is none of a GPU's.
        """
        if descriptor.backend is not ArenaBackend.CUDA_IPC:
            raise ContractViolation(f"this drafter cannot map an arena of kind {descriptor.backend.value}")
        if len(descriptor.handle) != 64 or any(
            region.file or region.offset + region_bytes(region) > descriptor.size - STAMP_BYTES
            for region in descriptor.regions
        ):
            raise ContractViolation("the arena's descriptor is damaged: a handle or a region of impossible size")
        runtime = runtime or cuda_runtime()
        visible = runtime.device_uuids()
        if descriptor.device_uuid not in visible:
            raise InvalidInput.field(
                "device", f"the arena lies on {descriptor.device_uuid}, and this process sees {', '.join(visible)}; "
                          "give both workers the same GPU (CUDA_VISIBLE_DEVICES, or the pod's limits)")
        try:
            block = runtime.open(visible.index(descriptor.device_uuid), descriptor.handle, descriptor.size)
        except CudaFailure as failure:
            raise _refused(failure, descriptor.epoch) from failure
        arena = cls(descriptor, block, runtime)
        magic, epoch = arena._stamp().tolist()
        if (magic, epoch) != (_MAGIC, descriptor.epoch):
            found = f"of epoch {epoch}" if magic == _MAGIC else "no arena"
            raise EpochMismatch(f"the handle of epoch {descriptor.epoch} leads to memory that is {found}; ask again")
        return arena

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._view().device

    @property
    def fds(self) -> tuple[int, ...]:
        """File descriptors that another process needs to map it: none, the handle is enough."""
        return ()

    @property
    def is_mapped(self) -> bool:
        """Whether this process still holds the memory: until ``close``, and then as long as a tensor over it lives."""
        return self._memory() is not None

    def tensor(self, name: str) -> Tensor:
        """The region ``name`` as a tensor over the shared memory; no copy. ``KeyError`` if there is none."""
        region = self._regions[name]
        dtype: torch.dtype = getattr(torch, region.dtype)
        return self._view()[region.offset : region.offset + region_bytes(region)].view(dtype).view(region.shape)

    def names(self) -> list[str]:
        """Names of all regions."""
        return list(self._regions)

    def close(self) -> None:
        """Let go of the memory, which goes when the last tensor over it does. Harmless when repeated."""
        self._block = None

    def _view(self) -> Tensor:
        if self._block is None:
            raise ContractViolation("the arena was closed")
        return self._runtime.view(self._block)

    def _stamp(self) -> Tensor:
        """``[2]`` int64: that this is an arena, and its epoch."""
        return self._view()[-STAMP_BYTES:][:16].view(torch.int64)


def _refused(failure: CudaFailure, epoch: int) -> InvalidInput | EpochMismatch:
    """Why a handle cannot be opened, in terms of what can be done about it."""
    if failure.code == DEVICE_UNINITIALIZED:
        return InvalidInput.field(
            "device", f"{failure}: verifier and drafter have the same PID, each in a PID namespace of its own; let "
                      "them share one (shareProcessNamespace: true in the pod, --pid=container:… in Docker). If they "
                      f"do, the verifier of epoch {epoch} is gone")
    return EpochMismatch(f"the arena of epoch {epoch} cannot be mapped, its verifier is gone: {failure}")
