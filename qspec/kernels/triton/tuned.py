"""Which tiles the products over planes use, measured once per GPU generation and checked in.

Nothing is tuned while requests wait. An entry is a weight's shape: for both planes and for the high one alone a
``split``, which is part of what defines a row's bits and so the same for every number of rows, and a tile for each
number of rows, which changes no bit. A shape without an entry takes the nearest one's and says so once.
``python -m benchmarks.gpu.kernels --section tune`` measures a table.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qspec.errors import InvalidInput
from qspec.kernels.triton.device_limits import DeviceLimits
from qspec.kernels.triton.input_order import GROUP
from qspec.kernels.triton.plane_linear import Tile, Weights, piece_length

_LOGGER = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_GENERATIONS = {9: "hopper"}
"""Major compute capability → name of the table."""
_E4M3_ROWS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How products of one kind over one shape of weight are cut up."""

    split: int
    """Pieces of the inputs (``plane_linear``)."""
    tiles: Mapping[int, Tile]
    """Up to how many rows → tile, ascending."""

    def __post_init__(self) -> None:
        if not self.tiles or list(self.tiles) != sorted(self.tiles):
            raise InvalidInput.field("tiles", "must be given for ascending numbers of rows")

    def within(self, limits: DeviceLimits, planes: int) -> Cut:
        """The same on a GPU that may have less room, for weights of ``planes`` bytes each."""
        return replace(self, tiles={rows: _within(tile, limits, planes) for rows, tile in self.tiles.items()})

    def tile(self, rows: int) -> Tile:
        """The tile for a product of ``rows`` rows."""
        return next((tile for up_to, tile in self.tiles.items() if rows <= up_to), list(self.tiles.values())[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTuning:
    """One weight shape's entry."""

    outputs: int
    inputs: int
    both: Cut
    high: Cut

    def __post_init__(self) -> None:
        for cut in (self.both, self.high):
            if not 1 <= cut.split <= most_pieces(self.inputs, cut.split):
                raise InvalidInput.field("split", f"{cut.split} pieces of {self.inputs} inputs: one would be empty")

    def cut(self, weights: Weights) -> Cut:
        """How a product that reads ``weights`` is cut up; merged weights have the pieces of both planes, and int8
        codes, of as many bytes as the high plane, those of that one."""
        return self.high if weights in (Weights.HIGH, Weights.INT8) else self.both


def _within(tile: Tile, limits: DeviceLimits, planes: int) -> Tile:
    """As many stages as there is room for, and where that is none, fewer rows; neither changes a bit."""
    stages = limits.stages(tile.stages, tile.inputs * (tile.outputs * planes + 2 * tile.rows))
    if stages or tile.rows <= 16:
        return replace(tile, stages=max(stages, 2))
    return _within(replace(tile, rows=tile.rows // 2), limits, planes)


def most_pieces(inputs: int, wanted: int) -> int:
    """The largest number of pieces up to ``wanted`` of which none is empty."""
    return next(split for split in range(wanted, 0, -1) if piece_length(inputs, split) * (split - 1) < inputs)


@dataclass(frozen=True, slots=True)
class TunedTable:
    """All entries of a GPU generation."""

    generation: str
    measured_on: str | None
    """The GPU that it was measured on; None: estimated."""
    linears: tuple[LinearTuning, ...]
    e4m3_rows: int = _E4M3_ROWS
    """Rows from which a draft with e4m3 activations on the high plane pays better than one with 16-bit ones, which cost
    the same while a step waits for the weights' bytes, and are accepted more often."""

    def linear(self, outputs: int, inputs: int) -> LinearTuning:
        """The entry of a weight ``[outputs, inputs]``, or the nearest one's numbers."""
        if inputs % GROUP:
            raise InvalidInput.field("weight", f"has {inputs} inputs; kernels take multiples of {GROUP}")

        def distance(entry: LinearTuning) -> float:
            return abs(math.log(entry.outputs / outputs)) + abs(math.log(entry.inputs / inputs))

        nearest = min(self.linears, key=distance)
        if (nearest.outputs, nearest.inputs) == (outputs, inputs):
            return nearest
        _tell_once(
            f"no tuned kernel for weights of {outputs}×{inputs} on {self.generation}: using the entry of "
            f"{nearest.outputs}×{nearest.inputs}"
        )
        both, high = (replace(cut, split=most_pieces(inputs, cut.split)) for cut in (nearest.both, nearest.high))
        return LinearTuning(outputs=outputs, inputs=inputs, both=both, high=high)

    def within(self, limits: DeviceLimits) -> TunedTable:
        """The same with tiles that a GPU has room for."""
        return replace(self, linears=tuple(
            replace(each, both=each.both.within(limits, 2), high=each.high.within(limits, 1)) for each in self.linears))

    def to_json(self) -> dict[str, Any]:
        """What ``parse`` reads."""
        return {
            "generation": self.generation,
            "measured_on": self.measured_on,
            "e4m3_rows": self.e4m3_rows,
            "linears": [
                {"outputs": each.outputs, "inputs": each.inputs, "both": asdict(each.both), "high": asdict(each.high)}
                for each in self.linears
            ],
        }

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> TunedTable:
        """The table of a parsed file; ``InvalidInput`` or ``TypeError`` where it has other fields."""
        def cut(fields: Mapping[str, Any]) -> Cut:
            return Cut(**{**fields, "tiles": {int(rows): Tile(**tile) for rows, tile in fields["tiles"].items()}})

        linears = tuple(
            LinearTuning(**{**entry, "both": cut(entry["both"]), "high": cut(entry["high"])})
            for entry in table["linears"]
        )
        return cls(table["generation"], table["measured_on"], linears, table.get("e4m3_rows", _E4M3_ROWS))


@lru_cache(maxsize=8)
def table_for(capability: tuple[int, int]) -> TunedTable:
    """The table for GPUs of a compute capability; a generation without one takes Hopper's and says so once."""
    generation = _GENERATIONS.get(capability[0])
    if generation is None:
        generation = "hopper"
        major, minor = capability
        _tell_once(f"no tuned kernels for compute capability {major}.{minor}: using those of {generation}")
    return TunedTable.parse(json.loads((_FOLDER / f"{generation}.json").read_text("utf-8")))


@lru_cache(maxsize=256)
def _tell_once(message: str) -> None:
    _LOGGER.warning(message)
