"""Kernels that choose tokens, beside a read of the logits: greedy, with noise, filtered, rejecting."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.read_floor import read_us
from benchmarks.gpu.results_file import Section
from benchmarks.gpu.shapes import SWEEP, ModelShape
from benchmarks.gpu.timing import microseconds
from qspec.kernels.triton.draws import DrawPlan, draw_tokens
from qspec.kernels.triton.elementwise import Pieces
from qspec.kernels.triton.greedy import greedy_tokens
from qspec.kernels.triton.row_draws import DrawKind, Field, PlacedDraw, RowDraw, draw_kind, write_draws
from qspec.sampling_options import AcceptanceRule, Sampling

_REJECTION = AcceptanceRule.REJECTION
SAMPLINGS = {
    "verdicts, greedy": Sampling(),
    "verdicts, drawn": Sampling(temperature=1.0, seed=7),
    "verdicts, top-p 0.9": Sampling(temperature=1.0, top_p=0.9, seed=7),
    "verdicts, rejection and top-p 0.9": Sampling(temperature=1.0, top_p=0.9, seed=7, rule=_REJECTION),
}


def drawing(section: Section, run: BenchRun) -> None:
    """Each way of drawing, for some numbers of rows."""
    for model in run.models:
        for rows in SWEEP if run.on_gpu else (2,):
            name = f"{model.name} M={rows}"
            found = section.measure(name, partial(_figure, model, rows, run))
            if found is not None:
                shown = "  ".join(f"{kernel} {time:.1f}" for kernel, time in found["us"].items())
                section.tell(f"{name}, µs (a read of the logits {found['floor_us']['greedy']:.1f}): {shown}")


def _figure(model: ModelShape, rows: int, run: BenchRun) -> dict[str, Any]:
    device, width = run.device, model.vocabulary
    product = Pieces(torch.randn(1, rows, width, device=device), torch.ones(width, device=device))
    chosen = torch.zeros(rows, dtype=torch.int32, device=device)
    calls: dict[str, Callable[[], object]] = {"greedy": lambda: greedy_tokens(product, chosen)}
    bytes_ = {"greedy": 4 * rows * width}
    for name, sampling in SAMPLINGS.items():
        calls[name], reads = _verdicts(product, sampling, rows, width, device)
        bytes_[name] = reads
    return {"model": model.name, "rows": rows,
            "us": {name: microseconds([call], device) for name, call in calls.items()},
            "floor_us": {name: read_us(size, device) for name, size in bytes_.items()}}


def _verdicts(
    product: Pieces, sampling: Sampling, rows: int, width: int, device: torch.device
) -> tuple[Callable[[], object], int]:
    """A call that decides on ``rows`` drafted tokens, and the bytes that it has to read."""
    kind = draw_kind([sampling])
    matrix = torch.zeros(len(Field), rows, dtype=torch.int32)
    write_draws(matrix.numpy(), [
        PlacedDraw(row, row, RowDraw(sampling=sampling, drafted=row % width, distribution=row)) for row in range(rows)
    ], range(rows))
    distributions = None
    if kind is DrawKind.FILTERED:
        distributions = torch.full((rows, width), 1.0 / width, device=device)
    plan = DrawPlan(matrix.to(device), torch.arange(rows, dtype=torch.int32, device=device), distributions)
    scaled = torch.empty(rows, width, device=device)
    chosen, stands = torch.zeros(2, rows, dtype=torch.int32, device=device)
    reads = 4 * rows * width * (2 if sampling.needs_draft_probs else 1)
    return lambda: draw_tokens(product, plan, kind, scaled, chosen, stands), reads
