"""Where the time of a round goes: kernels by what they do, and what lies between them.

torch's profiler sees the kernels of replayed graphs one by one. Launches overlap (``qspec.kernels.triton.overlap``), so
the time in which no kernel runs is counted from the union of their spans; a kernel's own time includes waiting for the
one before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.in_process import Pair
from qspec.interfaces import Sampling

_ROUNDS = 20
_KINDS = (
    ("weights", ("plane_product", "gemm", "cutlass", "nvjet", "_scaled_mm")),
    ("attention", ("_attend", "_merge")),
    ("drawing tokens", ("_largest", "_draw", "_scale_blocks", "_bounds", "_verdicts", "_feed_back")),
    ("copies", ("Memcpy", "Memset", "copy")),
    ("norms, rotary, SiLU, embedding", ("_norm", "_rotary", "_silu", "_quantise", "_embed")),
)


def profile_rounds(pair: Pair, batch: int, length: int) -> dict[str, Any]:
    """µs of a round by kind of kernel, greedy; "nothing runs" is the rest of the wall-clock time."""
    sequences = pair.sequences(batch, 600, length, Sampling())
    for sequence in sequences:
        pair.loop.add(sequence)
    while not all(sequence.generated for sequence in sequences):
        pair.loop.step()
    for _ in range(5):
        pair.loop.step()
    activities = [ProfilerActivity.CUDA] if torch.cuda.is_available() else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        started = time.perf_counter()
        for _ in range(_ROUNDS):
            pair.loop.step()
        seconds = time.perf_counter() - started
    for sequence in sequences:
        pair.loop.remove(sequence)
    while pair.loop.has_work:
        pair.loop.step()
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in profiler.events() or ()
             if str(event.device_type).endswith("CUDA")]
    return {"batch": batch, "k": length, **spans_by_kind(spans, _ROUNDS, seconds)}


def spans_by_kind(spans: Iterable[tuple[str, float, float]], rounds: int, seconds: float) -> dict[str, Any]:
    """µs a round of each kind's kernels (name, start and end in µs), in which any runs, and in which none does."""
    spans = sorted(spans, key=lambda span: span[1])
    kinds = {kind: 0.0 for kind, _ in _KINDS} | {"other": 0.0}
    busy, end = 0.0, float("-inf")
    for name, start, stop in spans:
        kinds[_kind(name)] += (stop - start) / rounds
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    round_us = seconds * 1e6 / rounds
    return {"kernels_us": kinds, "launches": len(spans) / rounds, "busy_us": busy / rounds, "round_us": round_us,
            "nothing_runs_us": round_us - busy / rounds}


def _kind(name: str) -> str:
    return next((kind for kind, parts in _KINDS if any(part in name for part in parts)), "other")
