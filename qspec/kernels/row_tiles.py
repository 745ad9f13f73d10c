"""Matrix products whose rows do not depend on each other, out of a library that does not promise it.

A BLAS picks its inner loop by shape, so ``mm`` of 1, 4 or 40 rows may sum a row's products in different orders and give
it different bits. Greedy and seeded text must not change with the number of rows computed together (draft length,
batch, prefill chunk), so every product here runs in *row tiles*: only row counts are ever passed to the library that
were seen, on this machine and for this very shape, to give every row the same bits, at every position in the tile. Any
other number of rows is cut into such tiles and the last one is padded.

The probe multiplies one vector, repeated, by the real weight: all rows of the result must be equal, and equal to those
of the anchor's tile, over thousands of outputs. Nothing is timed, so a process that is started anew chooses the same
tiles. With the anchor at 4 rows a machine whose library is uniform from 2 rows up (Intel MKL) pads a single row to 2,
one that changes its loop at 2, 4 and 10 rows (measured on an EPYC) uses tiles of 4 to 9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ANCHOR_ROWS = 4
"""The row count whose bits define the result: small enough to pad one row to, large enough for a verify pass."""

CANDIDATE_ROWS = (*range(1, 17), 24, 32, 64, 128, 256, 512)
"""Row counts that are tried."""

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class RowTiles:
    """Row counts that all give the same bits, ascending; never empty."""

    sizes: tuple[int, ...]

    def plan(self, rows: int) -> tuple[tuple[int, int, int], ...]:
        """Cut ``rows`` into (start, stop, tile size); the tile size exceeds stop - start where rows are padded."""
        return _plan(self.sizes, rows)

    def padded(self, rows: int) -> int:
        """``rows``, or a little more so that they are one tile; ``rows`` itself where they are cut up anyway."""
        plan = self.plan(rows)
        return plan[0][2] if len(plan) == 1 else rows


@lru_cache(maxsize=4096)
def _plan(sizes: tuple[int, ...], rows: int) -> tuple[tuple[int, int, int], ...]:
    tiles, start = [], 0
    while start < rows:
        left = rows - start
        padded = next((size for size in sizes if size >= left), None)
        fitting = next((size for size in reversed(sizes) if size <= left), None)
        # Pad when the padding is small, or when nothing smaller fits; else take the largest tile that fits.
        size = padded if padded is not None and (fitting is None or padded - left <= left // 4) else fitting
        assert size is not None, "sizes is never empty"
        tiles.append((start, min(start + size, rows), size))
        start += size
    return tuple(tiles)


def probe_row_tiles(product: Callable[[Tensor], Tensor], row: Tensor, candidates: Sequence[int]) -> RowTiles:
    """Find the row counts for which ``product`` gives each row the bits that it has in the anchor's tile.

    ``product``: ``[rows, K] -> [rows, N]``; ``row``: ``[K]``, the vector to probe with. Falls to single rows, one
    product each, should the library not even treat the rows of one tile alike.
    """
    def uniform_bits(rows: int) -> Tensor | None:
        result = product(row.expand(rows, -1).contiguous())
        return result[0] if bool((result == result[0]).all()) else None

    anchor = uniform_bits(ANCHOR_ROWS)
    if anchor is None:
        return RowTiles((1,))
    same = []
    for rows in candidates:
        bits = uniform_bits(rows)
        if bits is not None and torch.equal(bits, anchor):
            same.append(rows)
    return RowTiles(tuple(sorted({*same, ANCHOR_ROWS})))


def tiled_product(product: Callable[[Tensor], Tensor], x: Tensor, tiles: RowTiles) -> Tensor:
    """``product(x)`` for ``x`` ``[rows, K]``, computed in row tiles: ``[rows, N]``."""
    rows = x.shape[0]
    plan = tiles.plan(rows)
    if len(plan) == 1 and plan[0][2] == rows and x.is_contiguous():
        return product(x)
    parts = []
    for start, stop, size in plan:
        tile = x[start:stop]
        if stop - start < size:
            tile = torch.cat([tile, tile.new_zeros(size - (stop - start), x.shape[1])])
        elif not tile.is_contiguous() or tile.data_ptr() % _ALIGNMENT:
            tile = tile.clone(memory_format=torch.contiguous_format)
        parts.append(product(tile)[: stop - start])
    return parts[0] if len(parts) == 1 else torch.cat(parts)
