"""Times on a GPU: calls inside a CUDA graph, over copies of their inputs, so that launches and caches do not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch

_Copy = TypeVar("_Copy")

_CALLS = 8
"""Calls in a graph, at least."""
_REPLAYS = 12
_WARM_UP = 3


def over(copies: Iterable[_Copy], call: Callable[[_Copy], object]) -> list[Callable[[], object]]:
    """``call`` for each of some copies, to be timed."""
    return [partial(call, copy) for copy in copies]


def microseconds(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Median time of a call in µs; ``calls`` are one operation over different copies of its inputs, used in turn.

    On a CPU, where kernels are interpreted, the time of a single call, so that a benchmark can be tried out.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        calls[0]()
        return (time.perf_counter() - start) * 1e6
    for call in calls:
        call()
    torch.cuda.synchronize()
    rounds = -(-_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    times: list[float] = []
    for _ in range(_WARM_UP + _REPLAYS):
        start_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start_event.record()
        graph.replay()
        end_event.record()
        torch.cuda.synchronize()
        times.append(start_event.elapsed_time(end_event) * 1e3 / (rounds * len(calls)))
    return statistics.median(times[_WARM_UP:])
