"""Pairs of methods in one table, gain or loss as it is: each against its own verifier's plain decoding and fp16's.

A verifier is loaded once for all drafters that are tried with it.
"""

from __future__ import annotations

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import CellPlan, cell_config, describe, measure_grid, progress_of
from benchmarks.gpu.in_process import named_model, verifying
from benchmarks.gpu.results_file import Section, free_gpu

FP16 = "none:fp16"
PAIRS: dict[str, tuple[str, ...]] = {
    FP16: ("fp8:plane", "fp8:plane-a8"),
    "int8": ("fp8", "w8a8"),
    "int4": ("w4a8",),
    "int8:nibbles": ("int4:plane",),
}
"""Verifier → drafters: ours, the seed's, the QSpec paper's, and planes of nibbles."""


def measure_pairs(
    section: Section, run: BenchRun, plan: CellPlan, pairs: dict[str, tuple[str, ...]] = PAIRS
) -> None:
    """Measure what ``section`` lacks: cells ``VERIFY: …`` of plain decoding, ``DRAFT → VERIFY: …`` of drafts."""
    plan = plan.chosen(run)
    tell = progress_of(section)
    lengths = [length for grid in plan.grids for length in grid.lengths if length != 0]
    plain = [grid.name(0) for grid in plan.grids]
    drafted = [name for grid in plan.grids for name, length in grid.cells if length != 0]
    for verify, drafts in pairs.items():
        prefixes = {draft: pair_prefix(draft, verify) for draft in drafts}
        names = [f"{verify}: {name}" for name in plain]
        names += [prefix + name for prefix in prefixes.values() for name in drafted]
        if not section.wants(names):
            continue
        try:
            model = named_model(run.model, plan.factor, tell, str(run.device))
            with verifying(model, cell_config(run, plan, verify), tell) as pair:
                if verify == FP16:
                    describe(section, pair, plan, run)
                measure_grid(section, pair, plan, run.tokens, (0,), f"{verify}: ")
                for draft, prefix in prefixes.items():
                    if not section.wants([prefix + name for name in drafted]):
                        continue
                    try:
                        with pair.drafting(draft, tell):
                            measure_grid(section, pair, plan, run.tokens, lengths, prefix)
                    except Exception as error:  # noqa: BLE001  (one pair's failure must not cost the others)
                        section.fail(prefix.rstrip(": "), error)
        except Exception as error:  # noqa: BLE001
            section.fail(verify, error)
        free_gpu()


def pair_prefix(draft: str, verify: str) -> str:
    """Before the names of a pair's cells."""
    return f"{draft} → {verify}: "
