"""The same product with rows of ``x`` first, as a measure of what row-invariance costs.

Up to 32 rows in a tile make Triton take ``mma.sync`` on Hopper, 64 and more ``wgmma`` with merged weights that go
through shared memory: the fastest of each number of rows, without a promise about bits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.planes import merge_planes


@triton.jit(do_not_specialize=["M"])
def _rows_first(
    x, high, low, pieces, M, N, K, chunk, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr
):  # fmt: skip
    tile_m, tile_n, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = tile_m * ROWS + tl.arange(0, ROWS), tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, INPUTS)
    weight_at = tl.minimum(columns, N - 1)[:, None] * K + depth[None, :]
    x_at = tl.minimum(rows, M - 1)[:, None] * K + depth[None, :]
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for k in range(piece * chunk, tl.minimum(piece * chunk + chunk, K), INPUTS):
        weights = merge_planes(tl.load(high + weight_at + k), tl.load(low + weight_at + k))
        total = tl.dot(tl.load(x + x_at + k), tl.trans(weights), total)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    tl.store(pieces + piece * M * N + rows[:, None] * N + columns[None, :], total, mask=inside)


CONFIGS = ((32, 128, 4, 4), (64, 128, 4, 4), (64, 64, 4, 5), (128, 64, 8, 3))
"""Outputs, inputs, warps, stages."""


def rows_first(
    x: Tensor, high: Tensor, low: Tensor, pieces: Tensor, chunk: int, config: tuple[int, int, int, int]
) -> None:
    """``x`` ``[M, K]`` in the usual order times two planes, in pieces of ``chunk`` inputs."""
    (rows, inputs), outputs = x.shape, high.shape[0]
    tile = 16 if rows <= 16 else 32 if rows <= 32 else 64
    grid = (triton.cdiv(rows, tile), triton.cdiv(outputs, config[0]), pieces.shape[0])
    _rows_first[grid](
        x, high, low, pieces, rows, outputs, inputs, chunk, ROWS=tile, OUTPUTS=config[0], INPUTS=config[1],
        num_warps=config[2], num_stages=config[3])
