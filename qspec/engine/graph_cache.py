"""CUDA graphs by what they compute: the first time something is launched, from then on it is replayed.

A decoder step is some hundred launches of a few microseconds each, which Python makes no faster than twenty. What is
captured reads and writes buffers at fixed places; whoever replays it fills these before. What a graph takes of the GPU
is measured as it is captured: no library tells. ``QSPEC_GPU_GRAPHS=0`` in the
environment is for measuring and for finding faults: everything is launched, every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

import torch

from qspec.memory.device_usage import free_bytes, out_of_memory_named


class GraphCache:
    """The graphs of one worker. They go with it, and hold no tensors: their owner keeps those."""

    def __init__(self, device: torch.device) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._enabled = device.type == "cuda" and os.environ.get("QSPEC_GPU_GRAPHS") != "0"
        self._device = device
        self.bytes = 0
        """By how much the device's free memory shrank while graphs were captured, and their kernels compiled,"""
        self.counts = True
        """as long as this is set."""
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, launch: Callable[[], object]) -> None:
        """Do what ``launch`` launches: always the same for one ``key``. ``OutOfMemory`` where a capture finds none."""
        if (graph := self._graphs.get(key)) is not None:
            graph.replay()
            return
        if not self._enabled:
            launch()
            return
        before = self._free()
        with out_of_memory_named("capturing a CUDA graph"):
            launch()  # compiles what has to be, which no capture can
            self._capture(key, launch)
        self.bytes += max(before - self._free(), 0)

    def _free(self) -> int:
        """Bytes that are free on the device, while they count."""
        return free_bytes(self._device) if self.counts else 0

    def _capture(self, key: Hashable, launch: Callable[[], object]) -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            launch()
        self._graphs[key] = graph
