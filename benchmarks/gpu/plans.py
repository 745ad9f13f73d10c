"""What the sections of whole steps measure, in the order of what it tells."""

from __future__ import annotations

from benchmarks.gpu.decode_cells import CellPlan, Grid

BATCHES = (1, 8, 32, 64)
_LENGTHS = (0, 1, 2, 4, 6, None)
_SOME = (0, 2, 4)

CELLS: dict[str, CellPlan] = {
    "x7": CellPlan(
        factor=7,
        grids=(
            *(Grid("greedy", batch, _LENGTHS) for batch in BATCHES),
            *(Grid("rejection", batch, (*_SOME, None)) for batch in (1, 8, 32)),
            *(Grid("filtered", batch, _SOME) for batch in (1, 8)),
            *(Grid("coupled", batch, _SOME) for batch in (1, 8)),
        ),
        profiled=((1, 0), (1, 4), (8, 4), (32, 2)),
    ),
    "x12": CellPlan(
        factor=12,
        grids=(
            *(Grid("greedy", batch, (0, 1, 2, 4, None)) for batch in BATCHES),
            *(Grid("rejection", batch, (0, 4)) for batch in (1, 8, 32)),
        ),
        profiled=((1, 0), (1, 4)),
    ),
    "x1": CellPlan(
        factor=1, grids=tuple(Grid("greedy", batch, (*_SOME, None)) for batch in BATCHES), profiled=((1, 0), (1, 4))),
}
"""One pair in one process, by the section's name."""
PLAIN: dict[str, CellPlan] = {
    f"plain-cublas-x{factor}": CellPlan(factor=factor, grids=tuple(Grid("greedy", batch, (0,)) for batch in BATCHES))
    for factor in (7, 12)
}
"""Plain decoding with the library's products."""
PAIRED: dict[str, CellPlan] = {
    "pairs-x7": CellPlan(factor=7, grids=tuple(Grid("greedy", batch, _SOME) for batch in (1, 8)))}
"""Pairs of methods."""
