"""What a GPU's memory is used for in all, and what a CUDA context takes of it.

NVML sees the whole device, whoever uses it, which is what a budget has to answer for: contexts, the driver's own
tables and other tenants included. It needs neither a context nor CUDA itself. What one process holds it tells neither
inside a PID namespace nor under MPS, so whatever cannot be computed is measured as the change of the whole: CUDA's
start, contexts, libraries, buffers, graphs. That holds while nobody else allocates, so the processes of all stacks take
turns (``device_turn``): to start CUDA, and to load, each from its context to its last graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from qspec.errors import InvalidInput, OutOfMemory, QspecError
from qspec.gpus import visible_gpus
from qspec.interfaces import MemoryItem, Progress
from qspec.memory.cuda_runtime import CudaRuntime

TURN_TIMEOUT_S = 540.0
"""Less than a coordinator gives a worker to start in, so that the worker says itself what kept it."""


class DeviceUsage:
    """The memory of one GPU as NVML sees it; ``library`` is the module ``pynvml``."""

    def __init__(self, library: Any, uuid: str) -> None:
        self._library, self.uuid = library, uuid
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

    @classmethod
    def expected(cls) -> DeviceUsage | None:
        """That of the GPU which CUDA will most likely number 0 in this process, found out without CUDA; None where
        there is none to be seen.
        """
        try:
            gpus = visible_gpus()
            return cls.of(gpus[0]) if gpus else None
        except InvalidInput:
            return None

    def used(self) -> int:
        """Bytes in use on the whole device, by whomever."""
        return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)


@contextmanager
def device_turn(lock: Path, progress: Progress, timeout_s: float = TURN_TIMEOUT_S) -> Iterator[None]:
    """Let no other process load on a GPU meanwhile; waits for one that does. ``QspecError`` after ``timeout_s``.

    ``lock``: the GPU's file, which a process that ends lets go of, however it ends. Whoever has the turn must not wait
    for another process, nor take it twice.
    """
    turn = FileLock(lock)
    try:
        turn.acquire(timeout=0)
    except Timeout:
        progress("waiting for another process that loads on this GPU", None)
        try:
            turn.acquire(timeout=timeout_s)
        except Timeout as error:
            raise QspecError(f"another process has been loading on this GPU for {timeout_s:g} s ({lock})") from error
    try:
        yield
    finally:
        turn.release()


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a GPU, whoever uses the rest; 0 for a device that is none."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


@contextmanager
def out_of_memory_named(what: str) -> Iterator[None]:
    """Where a GPU's memory runs out in torch: ``OutOfMemory`` that says in one line in ``what``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).partition("\n")[0]
        raise OutOfMemory(f"the GPU's memory ran out in {what}; lower kv_tokens or max_slots ({said})") from error


def measure_context(
    runtime: CudaRuntime, device: int, usage: DeviceUsage, load: Callable[[CudaRuntime, int], None] | None = None
) -> MemoryItem:
    """Make this process's context, ``load`` what every torch program loads, and say what that took of the GPU, with
    what CUDA's start had taken: of the first client of an MPS daemon that is the server's own memory, too.

    To be called in the process's turn and before anything else touches the GPU: a context that exists already measures
    as nothing. An MPS server that other clients have started is nobody's.
    """
    before = usage.used()
    runtime.make_context(device)
    (load or _load_libraries)(runtime, device)
    taken = max(usage.used() - before, 0) + (runtime.start_bytes or 0)
    runtime.start_bytes = 0  # it is counted now
    return MemoryItem(name="CUDA context and libraries", bytes=taken, shared=False)


def _load_libraries(runtime: CudaRuntime, device: int) -> None:
    square = torch.ones(1024, 1024, dtype=torch.float16, device=torch.device("cuda", device))
    square.mm(square)
    del square
    runtime.synchronize(device)
    torch.cuda.empty_cache()
