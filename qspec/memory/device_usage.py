"""What a GPU's memory is used for in all, and what a CUDA context takes of it.

NVML sees the whole device, whoever uses it, which is what a budget has to answer for: contexts, the driver's own
tables and other tenants included. It needs no context itself. What one process holds it tells neither inside a PID
namespace nor under MPS, so a context is measured as the change of the whole, one process after the other.
"""

from __future__ import annotations

from typing import Any

import torch

from qspec.errors import InvalidInput
from qspec.interfaces import MemoryItem
from qspec.memory.cuda_runtime import CudaRuntime


class DeviceUsage:
    """The memory of one GPU as NVML sees it; ``library`` is the module ``pynvml``."""

    def __init__(self, library: Any, uuid: str) -> None:
        self._library = library
        library.nvmlInit()
        self._handle = library.nvmlDeviceGetHandleByUUID(uuid)

    @classmethod
    def of(cls, uuid: str) -> DeviceUsage:
        """That of the GPU with this UUID; ``InvalidInput`` without the package or the library behind it."""
        try:
            import pynvml
        except ImportError as error:
            raise InvalidInput.field(
                "device", "measuring a GPU's memory needs the package nvidia-ml-py; run: pip install 'qspec-serve[gpu]'"
            ) from error
        try:
            return cls(pynvml, uuid)
        except pynvml.NVMLError as error:
            raise InvalidInput.field("device", f"NVML does not answer for {uuid}: {error}") from error

    def used(self) -> int:
        """Bytes in use on the whole device, by whomever."""
        return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)


def measure_context(runtime: CudaRuntime, device: int, usage: DeviceUsage) -> MemoryItem:
    """Make this process's context, load what every torch program loads, and say what that took of the GPU.

    To be called under a lock that all processes of a stack take, so that none measures another's context, and before
    anything else touches the GPU: a context that exists already measures as nothing.
    """
    before = usage.used()
    runtime.make_context(device)
    where = torch.device("cuda", device)
    square = torch.ones(1024, 1024, dtype=torch.float16, device=where)
    square.mm(square)
    del square
    runtime.synchronize(device)
    torch.cuda.empty_cache()
    return MemoryItem(name="CUDA context and libraries", bytes=max(usage.used() - before, 0), shared=False)
