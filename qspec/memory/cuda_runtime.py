"""The few calls of the CUDA runtime that a shared arena is made of, with errors that say what helps.

They go through ``cuda.bindings.runtime``, whose functions return ``(error, value, …)``. It is imported when the first
GPU arena is made, so that a machine without a GPU needs neither the package nor a driver. The primary context is the
one that torch uses, so memory from here and torch's kernels meet without further ado.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from qspec.errors import InvalidInput, QspecError
from qspec.memory.device_block import DeviceBlock

DEVICE_UNINITIALIZED = 201
"""``cudaErrorDeviceUninitialized``: what opening a handle gives where exporter and importer have one PID."""


class CudaFailure(QspecError):
    """A call of the CUDA runtime failed."""

    def __init__(self, function: str, code: int, name: str) -> None:
        self.code = code
        super().__init__(f"{function} failed with error {code} ({name})")


class CudaRuntime:
    """CUDA as one process sees it.

    ``library`` is the module ``cuda.bindings.runtime``; ``view`` makes a uint8 tensor ``[size]`` over a block, without
    a copy, that keeps the block.
    """

    def __init__(self, library: Any, view: Callable[[DeviceBlock], Tensor]) -> None:
        self._library, self.view = library, view
        self.exported: WeakValueDictionary[bytes, DeviceBlock] = WeakValueDictionary()
        """Blocks that this process shares, by handle: CUDA opens no handle in the process that it comes from."""
        self.start_bytes: int | None = None
        """What CUDA's start in this process took of the first GPU and no line of memory counts yet; None until it is
        measured (``qspec.engine.gpu_turn``)."""

    def device_uuids(self) -> list[str]:
        """UUID of each visible GPU as nvidia-smi prints it, by number; ``InvalidInput`` when there is none."""
        try:
            (count,) = self._call("cudaGetDeviceCount")
        except CudaFailure as failure:
            raise InvalidInput.field("device", f"no CUDA GPU can be used here: {failure}") from failure
        if not count:
            raise InvalidInput.field("device", "no CUDA GPU is visible here; see CUDA_VISIBLE_DEVICES")
        uuids = []
        for device in range(count):
            (properties,) = self._call("cudaGetDeviceProperties", device)
            uuids.append(f"GPU-{UUID(bytes=bytes(properties.uuid.bytes))}")
        return uuids

    def device_uuid(self, device: int) -> str:
        """UUID of one GPU; ``InvalidInput`` when there are not so many."""
        uuids = self.device_uuids()
        if not 0 <= device < len(uuids):
            raise InvalidInput.field("device", f"GPU {device} does not exist; {len(uuids)} are visible here")
        return uuids[device]

    def make_context(self, device: int) -> None:
        """Use ``device`` from now on in this thread, making its context where there is none yet."""
        self._call("cudaSetDevice", device)
        self._call("cudaFree", 0)

    def free_memory(self, device: int) -> int:
        """Bytes that are free on ``device``, whoever uses the rest."""
        self._call("cudaSetDevice", device)
        free, _total = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, device: int, size: int) -> DeviceBlock:
        """``size`` bytes of zeros. ``CudaFailure``."""
        self._call("cudaSetDevice", device)
        (pointer,) = self._call("cudaMalloc", size)
        block = DeviceBlock(int(pointer), size, device, lambda: self._release(device, "cudaFree", int(pointer)))
        self._call("cudaMemset", block.pointer, 0, size)
        self._call("cudaDeviceSynchronize")
        return block

    def export(self, block: DeviceBlock) -> bytes:
        """The handle, 64 bytes, with which another process can map an allocated ``block``."""
        (handle,) = self._call("cudaIpcGetMemHandle", block.pointer)
        data = bytes(handle.reserved)
        self.exported[data] = block
        return data

    def open(self, device: int, data: bytes, size: int) -> DeviceBlock:
        """Map the block of ``size`` bytes that another process, or this one, exported as ``data``. ``CudaFailure``."""
        if (own := self.exported.get(data)) is not None:
            return own
        self._call("cudaSetDevice", device)
        handle = self._library.cudaIpcMemHandle_t()
        handle.reserved = data
        (pointer,) = self._call("cudaIpcOpenMemHandle", handle, self._library.cudaIpcMemLazyEnablePeerAccess)
        return DeviceBlock(
            int(pointer), size, device, lambda: self._release(device, "cudaIpcCloseMemHandle", int(pointer)))

    def synchronize(self, device: int) -> None:
        """Wait for everything that this process has asked of ``device``."""
        self._call("cudaSetDevice", device)
        self._call("cudaDeviceSynchronize")

    def _release(self, device: int, function: str, pointer: int) -> None:
        self.synchronize(device)  # a kernel may still be reading
        self._call(function, pointer)

    def _call(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        error, *values = getattr(self._library, function)(*arguments)
        if int(error):
            self._library.cudaGetLastError()  # or the next call that asks for it would report this one's
            raise CudaFailure(function, int(error), str(getattr(error, "name", "unknown")))
        return tuple(values)


@lru_cache(maxsize=1)
def cuda_runtime() -> CudaRuntime:
    """The runtime of this process; ``InvalidInput`` without the package that binds it."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise InvalidInput.field(
            "device", f"a GPU needs the package cuda-bindings ({error}); run: pip install 'qspec-serve[gpu]'"
        ) from error
    return CudaRuntime(runtime, _device_bytes)


def _device_bytes(block: DeviceBlock) -> Tensor:
    return torch.as_tensor(block, device=torch.device("cuda", block.device))
