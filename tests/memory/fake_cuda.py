"""A CUDA runtime in host memory: what ``cuda.bindings.runtime`` answers, call by call, for errors and lifetimes.

A ``FakeGpu`` is the device; each ``FakeCudaRuntime`` is what one process sees, and ``runtime()`` puts the typed one
over it.
Memory is freed for real: a tensor over a block that was let go would read garbage.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from qspec.memory.cuda_runtime import CudaRuntime
from qspec.memory.device_block import DeviceBlock


class Error(IntEnum):
    """The members of ``cudaError_t`` that occur here."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorDeviceUninitialized = 201  # noqa: N815
    cudaErrorMapBufferObjectFailed = 205  # noqa: N815


@dataclass(slots=True)
class Allocation:
    """Device memory, and who holds it."""

    memory: ctypes.Array[ctypes.c_uint8]
    holders: int = 1
    exported: bool = False

    @property
    def pointer(self) -> int:
        """Where it is."""
        return ctypes.addressof(self.memory)


@dataclass(slots=True)
class FakeGpu:
    """One device and what was allocated on it."""

    uuid: UUID = field(default_factory=lambda: UUID(int=7))
    total: int = 1 << 30
    allocations: dict[int, Allocation] = field(default_factory=dict)
    """By address."""
    unallocated: int = 0
    """Bytes that are in use without having been allocated by a program: contexts, servers, libraries."""

    @property
    def used(self) -> int:
        """Bytes that are in use."""
        return self.unallocated + sum(len(each.memory) for each in self.allocations.values())

    def let_go(self, pointer: int) -> None:
        """One holder less; the last one's memory is free."""
        allocation = self.allocations[pointer]
        allocation.holders -= 1
        if not allocation.holders:
            del self.allocations[pointer]


class _MemHandle:
    def __init__(self) -> None:
        self.reserved = bytes(64)


class FakeCudaRuntime:
    """One process's ``cuda.bindings.runtime``. ``pid`` is part of the handles that it exports, as on a GPU."""

    cudaIpcMemLazyEnablePeerAccess = 1  # noqa: N815
    cudaIpcMemHandle_t = _MemHandle  # noqa: N815

    def __init__(
        self, *gpus: FakeGpu, pid: int = 1, error: Error = Error.cudaSuccess, start_bytes: int = 0,
        context_bytes: int = 0,
    ) -> None:
        """``error``: what every call gives, when it is not success. ``start_bytes``: what the first call takes of the
        first GPU; ``context_bytes``: what a context takes, which this one gets with ``cudaFree(0)``.
        """
        self.gpus, self.pid, self.error = gpus, pid, error
        self.start_bytes, self.context_bytes = start_bytes, context_bytes
        self.calls: list[str] = []
        self.device = 0

    def runtime(self) -> CudaRuntime:
        """The typed runtime over it, with tensors in host memory."""
        return CudaRuntime(self, _host_view)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (Error.cudaSuccess,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        self._start()
        return (self.error, None) if self.error else (Error.cudaSuccess, len(self.gpus))

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        return Error.cudaSuccess, SimpleNamespace(uuid=SimpleNamespace(bytes=self.gpus[device].uuid.bytes))

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        self._start()
        self.device = device
        return (Error.cudaSuccess,)

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        self.calls.append("cudaDeviceSynchronize")
        return (Error.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        gpu = self.gpus[self.device]
        return Error.cudaSuccess, gpu.total - gpu.used, gpu.total

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self.calls.append("cudaMalloc")
        gpu = self.gpus[self.device]
        if size > gpu.total - gpu.used:
            return Error.cudaErrorMemoryAllocation, None
        allocation = Allocation((ctypes.c_uint8 * size)())
        ctypes.memset(allocation.pointer, 0xA5, size)
        gpu.allocations[allocation.pointer] = allocation
        return Error.cudaSuccess, allocation.pointer

    def cudaMemset(self, pointer: int, value: int, size: int) -> tuple[Any, ...]:
        ctypes.memset(pointer, value, size)
        return (Error.cudaSuccess,)

    def cudaFree(self, pointer: int) -> tuple[Any, ...]:
        self.calls.append("cudaFree")
        if pointer:
            self.gpus[self.device].let_go(pointer)
        else:
            self.gpus[self.device].unallocated += self.context_bytes
            self.context_bytes = 0
        return (Error.cudaSuccess,)

    def cudaIpcGetMemHandle(self, pointer: int) -> tuple[Any, ...]:
        handle = _MemHandle()
        handle.reserved = self.pid.to_bytes(8, "little") + pointer.to_bytes(8, "little") + bytes(48)
        self.gpus[self.device].allocations[pointer].exported = True
        return Error.cudaSuccess, handle

    def cudaIpcOpenMemHandle(self, handle: _MemHandle, flags: int) -> tuple[Any, ...]:
        self.calls.append("cudaIpcOpenMemHandle")
        pid, pointer = (int.from_bytes(handle.reserved[at : at + 8], "little") for at in (0, 8))
        if pid == self.pid:
            return Error.cudaErrorDeviceUninitialized, None
        allocation = self.gpus[self.device].allocations.get(pointer)
        if allocation is None or not allocation.exported or flags != self.cudaIpcMemLazyEnablePeerAccess:
            return Error.cudaErrorMapBufferObjectFailed, None
        allocation.holders += 1
        return Error.cudaSuccess, pointer

    def cudaIpcCloseMemHandle(self, pointer: int) -> tuple[Any, ...]:
        self.calls.append("cudaIpcCloseMemHandle")
        self.gpus[self.device].let_go(pointer)
        return (Error.cudaSuccess,)

    def _start(self) -> None:
        if self.gpus:
            self.gpus[0].unallocated += self.start_bytes
        self.start_bytes = 0


def _host_view(block: DeviceBlock) -> Tensor:
    memory = (ctypes.c_uint8 * block.size).from_address(block.pointer)
    memory.block = block  # type: ignore[attr-defined]  # the tensor keeps the array, and that the block
    return torch.frombuffer(memory, dtype=torch.uint8)
