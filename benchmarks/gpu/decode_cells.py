"""Decoding by both engines in one process: a cell for each way of sampling, batch and draft length.

Plain decoding is measured before and after the drafts of its batch, and their mean counts: clocks drift
(``decode_costs``). The floor is a pure read of the bytes that a plain step reads, at the bandwidth measured in the same
run. A model is loaded once for all cells.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decoding import ALONE, ENDLESS, decode, measured_rounds
from benchmarks.gpu.fp16_memory import fp16_bytes
from benchmarks.gpu.in_process import Pair, named_model, verifying
from benchmarks.gpu.results_file import Section
from benchmarks.gpu.round_profile import profile_rounds
from benchmarks.gpu.timing import microseconds
from benchmarks.gpu.weights import read_all
from qspec.config import StackConfig
from qspec.cost_calibration import calibrate
from qspec.interfaces import Progress, Sampling
from qspec.quant.methods import NO_DRAFTER
from qspec.sampling_options import AcceptanceRule

_SEED = 20260801
SAMPLINGS = {
    "greedy": Sampling(),
    "coupled": Sampling(temperature=1.0, seed=_SEED),
    "rejection": Sampling(temperature=1.0, seed=_SEED, rule=AcceptanceRule.REJECTION),
    "filtered": Sampling(temperature=1.0, top_p=0.9, seed=_SEED, rule=AcceptanceRule.REJECTION),
}
"""By name; the last one rejects and filters."""
AUTO = "auto"
"""How a cell calls the controller's draft lengths."""
AGAIN = "again"
"""Behind the name of plain decoding that is measured a second time."""
_CONTROLLED = 8
"""The longest draft of the controller: that of a server."""
_ROWS = (64, 512)
"""Least and most of a batch: prompts are entered in no smaller pieces, and in no larger ones than a server does."""
_READ_BYTES = 512 << 20
_NEVER_READ = ("weights/embed",)
"""Of which a step reads a row or two."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Draft lengths to measure with one way of sampling at one batch size."""

    sampling: str
    batch: int
    lengths: tuple[int | None, ...]

    def name(self, length: int | None) -> str:
        """Of a cell."""
        return f"{self.sampling} batch {self.batch} k {AUTO if length is None else length}"

    @property
    def cells(self) -> Iterator[tuple[str, int | None]]:
        """Names and draft lengths, plain decoding first and last; the controller, which learns, behind the others."""
        ordered = sorted(set(self.lengths) | {0}, key=lambda length: (length is None, length or 0))
        yield from ((self.name(length), length) for length in ordered)
        if len(ordered) > 1:
            yield f"{self.name(0)} {AGAIN}", 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """What to measure over one model."""

    factor: int
    grids: tuple[Grid, ...]
    profiled: tuple[tuple[int, int], ...] = ()
    """(batch, draft length) of which it is told where the time goes."""
    positions: int = 1024
    """Of a sequence: prompt and text."""
    warm_up: int = 8
    """Tokens that are made before each cell: their rounds capture what is to be captured."""
    alone: int = ALONE
    """Texts at batch 1."""

    def chosen(self, run: BenchRun) -> CellPlan:
        """What of it a run asks for; batches and draft lengths of its own count for all ways of sampling."""
        samplings = run.samplings or tuple(dict.fromkeys(grid.sampling for grid in self.grids))
        grids = [grid for grid in self.grids if grid.sampling in samplings]
        grids += [Grid(name, batch, (0,)) for name in samplings for batch in run.batches]
        if run.batches:
            grids = [grid for grid in grids if grid.batch in run.batches]
        merged: dict[tuple[str, int], tuple[int | None, ...]] = {}
        for grid in grids:
            key = grid.sampling, grid.batch
            merged[key] = (*merged.get(key, ()), *(run.lengths or grid.lengths))
        return replace(self, grids=tuple(Grid(*key, tuple(dict.fromkeys(each))) for key, each in merged.items()))


def measure_cells(section: Section, run: BenchRun, plan: CellPlan) -> None:
    """Measure all cells that ``section`` lacks, with the pair of ``run``."""
    plan = plan.chosen(run)
    profiles = [f"profile batch {batch} k {length}" for batch, length in plan.profiled]
    if not section.wants([*(name for grid in plan.grids for name, _ in grid.cells), *profiles]):
        return
    lengths = {length for grid in plan.grids for length in grid.lengths}
    tell = progress_of(section)
    config = cell_config(run, plan, run.verify)
    started = time.perf_counter()
    with verifying(named_model(run.model, plan.factor, tell, str(run.device)), config, tell) as pair:
        describe(section, pair, plan, run)
        if lengths == {0}:
            measure_grid(section, pair, plan, run.tokens)
            return
        with pair.drafting(run.draft, tell) as drafter:
            if None in lengths:
                calibrate(pair.loop, tell)
            section.note("load_s", time.perf_counter() - started)
            section.note("draft", run.draft)
            section.note("drafter_memory", {item.name: item.bytes for item in drafter.memory})
            measure_grid(section, pair, plan, run.tokens)
            for name, (batch, length) in zip(profiles, plan.profiled, strict=True):
                section.measure(name, partial(profile_rounds, pair, batch, length))


def cell_config(run: BenchRun, plan: CellPlan, verify: str) -> StackConfig:
    """Slots and positions for all cells."""
    lengths = [length for grid in plan.grids for length in grid.lengths]
    longest = max((_CONTROLLED if length is None else length for length in lengths), default=0)
    batch = max(grid.batch for grid in plan.grids)
    rows = min(max(batch * (longest + 1), _ROWS[0]), _ROWS[1])  # each number of rows has its graphs
    return StackConfig(
        model=run.model, device="cuda", draft_quantization=NO_DRAFTER, verify_quantization=verify, max_slots=batch,
        max_draft_length=max(longest, 1), kv_tokens=batch * plan.positions, max_model_len=plan.positions,
        max_batch_rows=rows)


def describe(section: Section, pair: Pair, plan: CellPlan, run: BenchRun) -> None:
    """Note what a step reads, how fast that can be read, and what the verifier holds."""
    read, bandwidth = step_bytes(pair), read_bandwidth(run.device)
    description = pair.verifier.describe()
    fp16 = fp16_bytes(pair.model.config, pair.config)
    for name, value in {
        "model": run.model, "widened": plan.factor, "verify": pair.config.verify_quantization, "step_bytes": read,
        "read_bytes_per_s": bandwidth, "arena_bytes": description.arena.size, "fp16_weights_and_kv_bytes": fp16,
        "arena_over_fp16": description.arena.size / fp16,
        "verifier_memory": {item.name: item.bytes for item in description.memory},
    }.items():
        section.note(name, value)
    section.tell(f"loaded; a step reads {read / 1e9:.3f} GB, {bandwidth / 1e12:.2f} TB/s are read, the arena is "
                 f"{description.arena.size / fp16:.3f} of fp16 weights and KV blocks, {pair.graphs} graphs")


def measure_grid(
    section: Section, pair: Pair, plan: CellPlan, tokens: int, lengths: Sequence[int | None] | None = None,
    prefix: str = "",
) -> None:
    """Cells of the attached pair; ``lengths``: of these alone, and no second plain decoding."""
    for grid in plan.grids:
        for name, length in grid.cells:
            if lengths is None or (length in lengths and not name.endswith(AGAIN)):
                found = section.measure(prefix + name, partial(_cell, pair, plan, grid, length, tokens))
                if found is not None:
                    section.tell(f"{prefix}{name}: {found['tokens_per_s']:.1f} tok/s, pass "
                                 f"{found['verify_s'] * 1e3:.3f} ms, outside {found['outside_s'] * 1e6:.0f} µs")


def _cell(pair: Pair, plan: CellPlan, grid: Grid, length: int | None, tokens: int) -> dict[str, Any]:
    sampling = SAMPLINGS[grid.sampling]
    measured_rounds(pair, pair.sequences(grid.batch, ENDLESS, length, sampling), plan.warm_up)  # captures graphs
    found = decode(pair, grid.batch, tokens, length, sampling, alone=plan.alone)
    return {"sampling": grid.sampling, "batch": grid.batch, "k": AUTO if length is None else length, **asdict(found),
            "rates": list(found.rates), "alpha": found.alpha, "accepted_share": found.accepted_share}


def step_bytes(pair: Pair) -> int:
    """Bytes of weights that a plain step reads."""
    arena = pair.verifier.arena
    names = [name for name in arena.names() if name.startswith(("weights/", "quantised/")) and name not in _NEVER_READ]
    return sum(tensor.numel() * tensor.element_size() for tensor in map(arena.tensor, names))


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a kernel that only reads."""
    size = _READ_BYTES if device.type == "cuda" else 1 << 16
    copies = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2)]
    out = torch.empty(size // 16384, dtype=torch.int32, device=device)
    return size / (microseconds([partial(read_all, copy, out) for copy in copies], device) * 1e-6)


def progress_of(section: Section) -> Progress:
    """Lines of a section, not every percent."""
    def tell(text: str, share: float | None) -> None:
        if share is None or share == 1.0:
            section.tell(text)

    return tell
