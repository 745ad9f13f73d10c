"""A worker's turns on a GPU: it starts CUDA in one and loads in another, so that what both take can be measured.

What CUDA's start takes belongs to no context: where the process is an MPS daemon's first client, the daemon starts its
server, with a context of its own (74 MB of an H200). So NVML is asked before CUDA is, and ``gpu_context`` counts it.
Turns are named by the GPU, and which one is the first CUDA tells only once it has started. So the turn to start is that
of the GPU which the environment and NVML lead to. Where CUDA turns out to number GPUs otherwise (several models, which
it sorts by speed, or a daemon that hides some), what its start took is not listed; loading has the right turn always.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qspec.config import cache_directory
from qspec.device import missing_packages
from qspec.errors import InvalidInput, QspecError
from qspec.interfaces import MemoryItem, Progress
from qspec.memory.cuda_runtime import CudaRuntime, cuda_runtime
from qspec.memory.device_usage import DeviceUsage, device_turn, measure_context, out_of_memory_named
from qspec.models.cache_entry import unwritable
from qspec.quant.methods import Backend


@contextmanager
def gpu_start(progress: Progress) -> Iterator[None]:
    """Around whatever this process asks of CUDA first: measures what that takes. Later, and where it cannot be
    measured, nothing: what is missing for a GPU is said by whoever needs it.
    """
    if missing_packages() or (runtime := cuda_runtime()).start_bytes is not None:
        yield
        return
    with ExitStack() as turn:
        usage = _in_its_turn(turn, progress)
        before = 0 if usage is None else usage.used()
        yield
        started_there = usage is not None and _first_gpu(runtime) == usage.uuid
        runtime.start_bytes = max(usage.used() - before, 0) if usage is not None and started_there else 0


def _in_its_turn(turn: ExitStack, progress: Progress) -> DeviceUsage | None:
    """Enter the ``turn`` of the GPU that CUDA is expected to start on; None where there is none, or no turn to be had:
    starting is not worth an error.
    """
    usage = DeviceUsage.expected()
    if usage is not None:
        try:
            turn.enter_context(device_turn(_lock(usage.uuid), progress))
        except QspecError:
            return None
    return usage


def _first_gpu(runtime: CudaRuntime) -> str | None:
    try:
        return runtime.device_uuid(0)
    except InvalidInput:
        return None


def gpu_context() -> MemoryItem:
    """Make this process's CUDA context, and say what it takes. ``InvalidInput`` without a GPU or its packages."""
    runtime = cuda_runtime()
    return measure_context(runtime, 0, DeviceUsage.of(runtime.device_uuid(0)))


@contextmanager
def gpu_turn(backend: Backend, progress: Progress) -> Iterator[None]:
    """Around all that a worker allocates on a GPU while it loads (``qspec.memory.device_usage``); else nothing.

    ``ModelError`` where the cache, in which the lock lies, is read-only.
    """
    if backend is not Backend.CUDA:
        yield
        return
    with device_turn(_lock(cuda_runtime().device_uuid(0)), progress), out_of_memory_named("loading"):
        yield


def _lock(uuid: str) -> Path:
    """The file of a GPU's turns. ``ModelError`` where it cannot be made."""
    lock = cache_directory() / f"{uuid}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise unwritable(error) from error
    return lock
