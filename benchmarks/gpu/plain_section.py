"""Plain decoding with cuBLAS over fp16 weights, in the same engine and its CUDA graphs: the faster of it and the two
planes counts as plain decoding.
"""

from __future__ import annotations

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import CellPlan, cell_config, describe, measure_grid, progress_of
from benchmarks.gpu.in_process import named_model, verifying
from benchmarks.gpu.library_linear import library_products
from benchmarks.gpu.results_file import Section
from qspec.models.decoder import linear_names


def measure_plain_library(section: Section, run: BenchRun, plan: CellPlan) -> None:
    """Measure what ``section`` lacks; all draft lengths of ``plan`` are 0."""
    plan = plan.chosen(run)
    if not section.wants([name for grid in plan.grids for name, _ in grid.cells]):
        return
    tell = progress_of(section)
    model = named_model(run.model, plan.factor, tell, str(run.device))
    with library_products() as made, verifying(model, cell_config(run, plan, "none:fp16"), tell) as pair:
        if len(made) != len(linear_names(model.config)):
            raise RuntimeError(f"the library multiplies in {len(made)} layers only")
        describe(section, pair, plan, run)
        measure_grid(section, pair, plan, run.tokens)
