"""The threads that native kernels compute with."""

from __future__ import annotations

import os

from torch import Tensor

from qspec.kernels.native.loading import load

SPIN_MICROSECONDS = 500
"""How long a thread waits at full speed before it sleeps: longer than the work between two decoder steps, and short
beside a step, because the other worker's threads need the core when this one waits for its turn."""


class Threads:
    """``count`` threads, the calling one included. Share one between all that never runs at the same time.

    They are bound to CPUs, each to one, when there are as many of them as CPUs (``qspec.threads`` says why); the caller
    is for the time of a call only.
    """

    def __init__(self, count: int, *, spin_microseconds: int = SPIN_MICROSECONDS, bind: bool | None = None) -> None:
        load()
        from qspec.kernels.native import _native

        self._native = _native
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = max(1, count)
        self.pool = _native.ThreadPool(self.count, spin_microseconds, self.count == cpus if bind is None else bind)

    def read(self, memory: Tensor) -> None:
        """Read a contiguous tensor once, all threads together: for measuring the bandwidth."""
        self._native.read_memory(memory.data_ptr(), memory.nbytes, self.pool)
