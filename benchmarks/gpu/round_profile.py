"""Where the time of a round goes: kernels by what they do, and what lies between them.

torch's profiler sees the kernels of replayed graphs one by one. Launches overlap (``qspec.kernels.triton.overlap``), so
the time in which no kernel runs is counted from the union of their spans; a kernel's own time includes waiting for the
one before it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.decoding import ENDLESS
from benchmarks.gpu.in_process import Pair
from qspec.interfaces import Sampling

_ROUNDS, _SETTLING = 20, 5
WEIGHTS, ATTENTION, DRAWING, BETWEEN, COPIES, OTHER = (
    "weights", "attention", "drawing tokens", "norms, rotary, SiLU, embedding", "copies", "other")
_KERNELS = {
    WEIGHTS: ("plane_product", "group_product", "int8_product"),
    ATTENTION: ("_attend", "_merge"),
    DRAWING: (
        "_largest_of_blocks", "_largest_of_row", "_draw_blocks", "_scale_blocks", "_draw_kept_blocks", "_bounds_kernel",
        "_verdicts_kernel", "_feed_back_kernel"),
    BETWEEN: ("norm_kernel", "_silu_kernel", "_quantise_kernel", "_rotary_kernel", "_embed_kernel", "_scale_kernel",
              "_merge_kernel"),
}
"""Our own kernels by what they do; a profiler shows the names of their functions."""
_KIND_OF = {name: kind for kind, names in _KERNELS.items() for name in names}
_LIBRARIES = (
    (WEIGHTS, ("gemm", "gemv", "cutlass", "nvjet", "xmma", "splitk", "scaled_mm")),
    (COPIES, ("memcpy", "memset", "copy", "gather", "index", "fill")),
)
"""Parts of the names of libraries' kernels, in lower case."""


def profile_rounds(pair: Pair, batch: int, length: int) -> dict[str, Any]:
    """µs of a round by kind of kernel, greedy; "nothing runs" is the rest of the wall-clock time."""
    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with pair.running(pair.sequences(batch, ENDLESS, length, Sampling())):
        for _ in range(_SETTLING):
            pair.loop.step()
        with profile(activities=activities) as profiler:
            started = time.perf_counter()
            for _ in range(_ROUNDS):
                pair.loop.step()
            seconds = time.perf_counter() - started
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in profiler.events() or ()
             if str(event.device_type).endswith("CUDA")]
    return {"profiled_batch": batch, "k": length, **spans_by_kind(spans, _ROUNDS, seconds)}


def spans_by_kind(spans: Iterable[tuple[str, float, float]], rounds: int, seconds: float) -> dict[str, Any]:
    """µs a round of each kind's kernels (name, start and end in µs), in which any runs, and in which none does."""
    spans = sorted(spans, key=lambda span: span[1])
    kinds = dict.fromkeys((WEIGHTS, ATTENTION, DRAWING, BETWEEN, COPIES, OTHER), 0.0)
    others: Counter[str] = Counter()
    busy, end = 0.0, float("-inf")
    for name, start, stop in spans:
        kind = kind_of(name)
        kinds[kind] += (stop - start) / rounds
        if kind == OTHER:
            others[name[:80]] += 1
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    round_us = seconds * 1e6 / rounds
    return {"kernels_us": kinds, "launches": len(spans) / rounds, "busy_us": busy / rounds, "round_us": round_us,
            "nothing_runs_us": round_us - busy / rounds, "others": dict(others.most_common(8))}


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    if name in _KIND_OF:
        return _KIND_OF[name]
    lower = name.lower()
    return next((kind for kind, parts in _LIBRARIES if any(part in lower for part in parts)), OTHER)
