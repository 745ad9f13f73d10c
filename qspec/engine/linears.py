"""Linear layers of the two workers, built from what lies in the arena or in the converted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qspec.kernels.int8_linear import Int8Linear
from qspec.kernels.row_tiles import CANDIDATE_ROWS, RowTiles, probe_row_tiles, tiled_product
from qspec.models.decoder import Linear

_WIDE_OUTPUTS = 16384
_WIDE_CANDIDATES = tuple(rows for rows in CANDIDATE_ROWS if rows <= 32)
"""A projection onto a vocabulary only ever sees the rows that are decided on; larger tiles cost probing time."""


class TiledLinear:
    """``x @ weight + bias`` in float32, row-invariant (``qspec.kernels.row_tiles``); reads ``weight`` in place."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tiles: RowTiles) -> None:
        self._weight, self._bias, self._tiles = weight, bias, tiles  # [in, out], [out]

    def __call__(self, x: Tensor) -> Tensor:
        y = tiled_product(self._multiply, x, self._tiles)
        return y if self._bias is None else y.add_(self._bias)

    def _multiply(self, x: Tensor) -> Tensor:
        return x @ self._weight


class PlainLinear:
    """``x @ weight + bias`` in float32, however the library likes it: for drafting."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self._weight if self._bias is None else torch.addmm(self._bias, x, self._weight)


def tiled_linears(names: list[str], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Linear], RowTiles]:
    """The verifier's linear layers, and the row tiles that all their shapes share (for people)."""
    by_shape: dict[tuple[int, int], RowTiles] = {}
    linears: dict[str, Linear] = {}
    for name in names:
        weight = tensors[name]
        shape = (weight.shape[0], weight.shape[1])
        if shape not in by_shape:
            candidates = _WIDE_CANDIDATES if shape[1] >= _WIDE_OUTPUTS else CANDIDATE_ROWS
            generator = torch.Generator().manual_seed(0)
            row = torch.randn(shape[0], generator=generator)
            by_shape[shape] = probe_row_tiles(weight.__rmatmul__, row, candidates)
        linears[name] = TiledLinear(weight, tensors.get(name + ".bias"), by_shape[shape])
    common = set.intersection(*(set(tiles.sizes) for tiles in by_shape.values()))
    return linears, RowTiles(tuple(sorted(common)) or (1,))


def plain_linears(names: list[str], tensors: Mapping[str, Tensor]) -> dict[str, Linear]:
    """The drafter's linear layers for method ``none``: the verifier's own weights, shared."""
    return {name: PlainLinear(tensors[name], tensors.get(name + ".bias")) for name in names}


def int8_linears(
    names: list[str],
    int8: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    progress: Callable[[str, float | None], None],
) -> dict[str, Int8Linear]:
    """The drafter's linear layers for ``w8a8``; ``int8`` holds ``NAME.codes`` and ``NAME.scales``."""
    linears = {}
    for index, name in enumerate(names):
        bias = tensors.get(name + ".bias")
        linears[name] = Int8Linear(int8[f"{name}.codes"], int8[f"{name}.scales"], bias)
        progress("packing int8 weights", (index + 1) / len(names))
    return linears
