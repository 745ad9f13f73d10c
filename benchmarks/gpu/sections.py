"""All sections by name, the most telling first, and groups of them."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu.bench_run import BenchRun, Program
from benchmarks.gpu.decode_cells import CellPlan, measure_cells
from benchmarks.gpu.kernel_sections import KERNELS
from benchmarks.gpu.pairs_section import measure_pairs
from benchmarks.gpu.plain_section import measure_plain_library
from benchmarks.gpu.plans import CELLS, PAIRED, PLAIN
from benchmarks.gpu.results_file import Section
from benchmarks.gpu.sharing import sharing
from benchmarks.gpu.stack_section import STACKS, measure_stack
from benchmarks.gpu.transformers_decode import FACTORS, measure_transformers


def _planned(measure: object, plan: CellPlan) -> Program:
    def program(section: Section, run: BenchRun) -> None:
        measure(section, run, plan)  # type: ignore[operator]

    return program


DECODE: dict[str, Program] = {name: _planned(measure_cells, plan) for name, plan in CELLS.items()}
PLAIN_LIBRARY: dict[str, Program] = {name: _planned(measure_plain_library, plan) for name, plan in PLAIN.items()}
PAIRS: dict[str, Program] = {name: _planned(measure_pairs, plan) for name, plan in PAIRED.items()}
STACK: dict[str, Program] = {name: partial(measure_stack, plan=plan) for name, plan in STACKS.items()}
TRANSFORMERS: dict[str, Program] = {
    f"transformers-x{factor}": partial(measure_transformers, factor=factor) for factor in FACTORS}
GROUPS: dict[str, dict[str, Program]] = {
    "decode": DECODE, "plain": PLAIN_LIBRARY, "pairs": PAIRS, "stack": STACK, "transformers": TRANSFORMERS,
    "kernels": KERNELS, "sharing": {"sharing": sharing},
}
"""What ``--section`` takes besides single names."""
PROGRAMS: dict[str, Program] = {name: program for group in GROUPS.values() for name, program in group.items()}
USUAL = (
    "x7", "plain-cublas-x7", "stack-x7", "transformers-x7", "pairs-x7", "x12", "plain-cublas-x12", "stack-x1", "x1",
    *KERNELS, "sharing",
)
"""Without ``--section``."""


def named_sections(names: list[str]) -> list[str]:
    """Sections of names and groups, each once. ``KeyError`` for what is neither."""
    found: list[str] = []
    for name in names:
        found += GROUPS[name] if name in GROUPS else [name] if name in PROGRAMS else _unknown(name)
    return list(dict.fromkeys(found))


def _unknown(name: str) -> list[str]:
    raise KeyError(f"there is no section {name!r}; choose from {', '.join((*GROUPS, *PROGRAMS))}")
