"""Chooses split and tiles for each shape of weight, for the checked-in table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.timing import microseconds
from benchmarks.gpu.weights import WeightCopies
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, piece_length, product_pieces
from qspec.kernels.triton.tuned import Cut, LinearTuning

CANDIDATES: dict[int, tuple[Tile, ...]] = {
    16: (
        Tile(rows=16), Tile(rows=16, stages=6), Tile(rows=16, outputs=128, stages=3),
        Tile(rows=16, inputs=256, stages=3), Tile(rows=16, inputs=256, stages=4),
    ),
    32: (
        Tile(rows=32), Tile(rows=32, stages=5), Tile(rows=32, outputs=128, warps=8, stages=3),
        Tile(rows=32, inputs=256, stages=3),
    ),
    64: (
        Tile(rows=64), Tile(rows=64, stages=3), Tile(rows=64, outputs=128, warps=8, stages=3),
        Tile(rows=64, outputs=128, stages=3), Tile(rows=64, outputs=256, warps=8, stages=2),
    ),
    128: (
        Tile(rows=128, outputs=128, warps=8, stages=3), Tile(rows=64, outputs=128, warps=8, stages=3),
        Tile(rows=128, outputs=128, warps=8, stages=3, each_waits=True),
        Tile(rows=128, inputs=64, each_waits=True),
        Tile(rows=128, outputs=256, inputs=64, warps=8, stages=4, each_waits=True),
        Tile(rows=128, outputs=256, warps=8, stages=2, each_waits=True), Tile(rows=128, outputs=256, warps=8, stages=2),
        Tile(rows=128, stages=3, each_waits=True),
    ),
    256: (
        Tile(rows=256, outputs=128, inputs=64, warps=8, stages=4, each_waits=True),
        Tile(rows=256, outputs=128, warps=8, stages=2, each_waits=True),
        Tile(rows=128, outputs=128, warps=8, stages=3, each_waits=True),
        Tile(rows=128, outputs=256, inputs=64, warps=8, stages=4, each_waits=True),
    ),
}  # fmt: skip
"""Up to how many rows → tiles to try. Every one multiplies with ``wgmma``. Of 64 inputs, half lines of planes,
only tiles for many rows are left, which the L2 cache binds: all others have lost, by up to 1.7×."""
MEASURED_ROWS = {16: (1, 8), 32: (32,), 64: (64,), 128: (128,), 256: (256,)}
SHARE = {1: 4.0, 8: 3.0, 32: 2.0, 64: 1.0, 128: 1.0, 256: 1.0}
"""How much a number of rows counts in the choice of the split, each relative to the best time it has."""
_PIECE_BYTES_PER_US = 3e6
"""What reading a piece again costs the next operation: cached, at about this rate."""


_MOST_HIGH_ROWS = 64
"""Beyond, e4m3 activations are faster: the high plane takes the tiles of both."""


def split_candidates(outputs: int, inputs: int) -> tuple[int, ...]:
    """Fewer pieces where outputs fill the GPU by themselves."""
    if outputs >= 16384:
        return (1,) if outputs >= 28672 else (1, 2)
    return (4, 8) if inputs > 8192 else (2, 4)


def tune_shape(
    outputs: int, inputs: int, device: torch.device, tell: Callable[[str], None],
    candidates: dict[int, tuple[Tile, ...]] = CANDIDATES,
) -> tuple[LinearTuning, list[dict[str, object]]]:  # fmt: skip
    """The best entry, for both planes and for the high one, and every time that was measured."""
    copies = WeightCopies.random(outputs, inputs, device)
    figures: list[dict[str, object]] = []
    both = _best_cut(copies.planes, candidates, device, tell, figures)
    few_rows = {up_to: tiles for up_to, tiles in candidates.items() if up_to <= _MOST_HIGH_ROWS}
    high = _best_cut(copies.high, few_rows, device, tell, figures)
    high = replace(high, tiles={**both.tiles, **high.tiles})
    return LinearTuning(outputs=outputs, inputs=inputs, both=both, high=high), figures


def tune_tiles(
    entry: LinearTuning, device: torch.device, tell: Callable[[str], None]
) -> tuple[LinearTuning, list[dict[str, Any]]]:
    """``entry`` with the best tiles of both planes for many rows, its split as it is, and every time."""
    copies = WeightCopies.random(entry.outputs, entry.inputs, device)
    figures: list[dict[str, Any]] = []
    tiles = dict(entry.both.tiles)
    wanted = (64, 128, 256) if device.type == "cuda" else (64,)
    for up_to in wanted:
        best: dict[Tile, float] = {}
        for tile in CANDIDATES[up_to] if device.type == "cuda" else CANDIDATES[up_to][:1]:
            for _, rows, time in _measure(copies.planes, entry.both.split, up_to, (tile,), device, tell):
                best[tile] = time
                figures.append({"outputs": entry.outputs, "inputs": entry.inputs, "split": entry.both.split,
                                "rows": rows, "tile": str(tile), "us": time})
        if best:
            tiles[up_to] = min(best, key=best.__getitem__)
    high = {**entry.high.tiles, **{up_to: tile for up_to, tile in tiles.items() if up_to > _MOST_HIGH_ROWS}}
    return replace(
        entry, both=replace(entry.both, tiles=tiles), high=replace(entry.high, tiles=dict(sorted(high.items())))
    ), figures


def _best_cut(
    weights: Sequence[PlaneWeight], candidates: dict[int, tuple[Tile, ...]], device: torch.device,
    tell: Callable[[str], None], figures: list[dict[str, object]],
) -> Cut:  # fmt: skip
    """One split for all numbers of rows, and the tile for each."""
    outputs, inputs = weights[0].high.shape
    times: dict[int, _Times] = {}  # by split
    for split in split_candidates(outputs, inputs):
        if piece_length(inputs, split) * (split - 1) >= inputs:
            continue
        times[split] = {}
        for up_to, tiles in candidates.items():
            for tile, rows, time in _measure(weights, split, up_to, tiles, device, tell):
                times[split].setdefault(up_to, {}).setdefault(tile, {})[rows] = time
                figures.append({"outputs": outputs, "inputs": inputs, "reads": weights[0].reads.name, "split": split,
                                "rows": rows, "tile": str(tile), "us": time})
    best_of_all = {rows: min(_each(times, rows)) for up_to in candidates for rows in MEASURED_ROWS[up_to]}

    def loss(split: int) -> float:
        total = 0.0
        for up_to, of_tiles in times[split].items():
            chosen = of_tiles[_best(of_tiles)]
            total += sum(SHARE[rows] * chosen[rows] / best_of_all[rows] for rows in MEASURED_ROWS[up_to])
        return total

    split = min((split for split in times if set(times[split]) == set(candidates)), key=loss)
    return Cut(split=split, tiles={up_to: _best(of_tiles) for up_to, of_tiles in times[split].items()})


def _measure(
    weights: Sequence[PlaneWeight], split: int, up_to: int, tiles: tuple[Tile, ...], device: torch.device,
    tell: Callable[[str], None],
) -> Iterator[tuple[Tile, int, float]]:  # fmt: skip
    outputs, inputs = weights[0].high.shape
    for tile in tiles:
        found = []
        for rows in MEASURED_ROWS[up_to]:
            x = arrange(torch.randn(rows, inputs, device=device).half())
            pieces = torch.empty(split, rows, outputs, device=device)
            calls = [partial(product_pieces, x, weight, split, tile, pieces) for weight in weights]
            try:
                time = microseconds(calls, device)
            except (OutOfResources, RuntimeError) as error:  # too much shared memory for this GPU
                tell(f"{outputs}x{inputs} split {split} rows {rows} {tile}: {type(error).__name__}: {error}"[:300])
                break
            found.append((tile, rows, time + (split - 1) * rows * outputs * 4 / _PIECE_BYTES_PER_US))
        else:
            yield from found


_Times = dict[int, dict[Tile, dict[int, float]]]
"""Up to how many rows → tile → rows → µs."""


def _best(of_tiles: dict[Tile, dict[int, float]]) -> Tile:
    return min(of_tiles, key=lambda tile: sum(SHARE[rows] * time for rows, time in of_tiles[tile].items()))


def _each(times: dict[int, _Times], rows: int) -> Iterator[float]:
    for of_split in times.values():
        for of_tiles in of_split.values():
            for of_rows in of_tiles.values():
                if rows in of_rows:
                    yield of_rows[rows]
