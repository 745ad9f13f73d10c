"""A real coordinator, as a process, on simulated workers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from coordinator.supervisor import ChildProcess
from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.rpc.channel import channel_options

_STOP_GRACE_S = 10.0
_LOOK_EVERY_S = 0.05
_SCHEDULER_CLOCK = 2
"""CPUCLOCK_SCHED of linux/posix-timers.h: nanoseconds, as the scheduler counts them."""


@dataclass(frozen=True, slots=True)
class SimulatedStack:
    """A coordinator that serves."""

    channel: grpc.aio.Channel
    pid: int
    """The coordinator's."""

    def cpu_s(self) -> float:
        """CPU seconds that the coordinator has taken so far, all its threads together."""
        return process_cpu_s(self.pid)


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a living process, all threads, ended ones too, in user mode and in the kernel.

    Linux's CPU clock of another process, whose number follows from that of the process (``clock_getcpuclockid``). The
    ticks of ``/proc`` are too coarse for a single stream. ``OSError`` when there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


@contextlib.asynccontextmanager
async def simulated_stack(model: str, *, slots: int, pass_s: float) -> AsyncIterator[SimulatedStack]:
    """Start both processes; what they raise is raised here. Nothing is left behind."""
    directory = Path(tempfile.gettempdir()) / f"qspec-{secrets.token_hex(8)}"
    directory.mkdir(mode=0o700)
    worker, listen = f"unix:{directory / 'workers.sock'}", f"unix:{directory / 'coordinator.sock'}"
    try:
        async with (
            _child("simulated worker", "benchmarks.serving.simulated_worker", [
                f"--listen={worker}", f"--model={model}", f"--slots={slots}", f"--pass-seconds={pass_s}"]),
            _child("coordinator", "coordinator", [
                f"--listen={listen}", f"--runtime-dir={directory / 'run'}", f"--verifier-address={worker}",
                f"--drafter-address={worker}", *stack_options(StackConfig(model=model))]) as coordinator,
            grpc.aio.insecure_channel(listen, options=channel_options(listen)) as channel,
        ):
            yield SimulatedStack(channel, coordinator.pid)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def _child(name: str, module: str, arguments: list[str]) -> AsyncIterator[ChildProcess]:
    """A process that is ready."""
    child = ChildProcess(name, module, arguments, lambda: None)
    try:
        while child.ready is None:
            if child.ended:
                raise child.failure()
            await asyncio.sleep(_LOOK_EVERY_S)
        yield child
    finally:
        if not child.ended:
            child.terminate()
        child.close(_STOP_GRACE_S)
