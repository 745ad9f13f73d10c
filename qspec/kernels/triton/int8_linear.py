"""int8 weights times int8 activations: the drafter's product of ``w8a8``, exact in int32.

``torch._int_mm`` takes more than 16 rows only and is slow on Hopper (measured), so this is a kernel of its own: both
operands go from memory through shared memory into 8-bit matrix instructions as they are. Sums of integers are the same
in every order; fp32 holds those below 2²⁴ exactly. Scales of tokens and rows are for the operation that reads the
product.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.plane_linear import Tile, piece_length

TILES = {
    16: Tile(rows=16, outputs=64, inputs=256, warps=4, stages=4),
    32: Tile(rows=32, outputs=64, inputs=256, warps=4, stages=4),
    64: Tile(rows=64, outputs=64, inputs=128, warps=4, stages=4),
    128: Tile(rows=128, outputs=128, inputs=128, warps=8, stages=4),
}
"""Up to how many rows → tile. Estimated, not yet measured."""


@triton.jit(do_not_specialize=["M"])
def int8_product(
    x, codes, pieces, M, N, K, x_stride, stride, chunk,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = tile_m * ROWS + tl.arange(0, ROWS), tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, INPUTS)
    weight_at = tl.minimum(columns, N - 1)[:, None] * stride + depth[None, :]
    x_at, of_row = rows[None, :] * x_stride + depth[:, None], (rows < M)[None, :]
    start = piece * chunk
    wait_for_inputs(OVERLAP)
    total = tl.zeros((OUTPUTS, ROWS), tl.int32)
    stop = tl.minimum(start + chunk, K)
    for k in range(start, stop, INPUTS):
        inside = depth < stop - k
        weights = tl.load(codes + weight_at + k, mask=inside[None, :], other=0)
        activations = tl.load(x + x_at + k, mask=inside[:, None] & of_row, other=0)
        total = tl.dot(weights, activations, total, out_dtype=tl.int32)
    at = rows[None, :] * N + columns[:, None]
    inside_out = (rows[None, :] < M) & (columns[:, None] < N)
    tl.store(pieces + piece * M * N + at, total.to(tl.float32), mask=inside_out)


def tile_for(rows: int) -> Tile:
    """The tile for a product of ``rows`` rows."""
    return next((tile for up_to, tile in TILES.items() if rows <= up_to), TILES[128])


def int8_pieces(x: Tensor, codes: Tensor, split: int, tile: Tile, pieces: Tensor) -> None:
    """``x · codesᵀ`` in ``split`` pieces: fp32 ``[split, M, N]`` into ``pieces``.

    ``x``: int8 ``[M, K]`` in the usual order; ``codes``: int8 ``[N, K]``, K a multiple of 64, rows may lie apart.
    """
    (rows, inputs), outputs = x.shape, codes.shape[0]
    chunk = piece_length(inputs, split)
    if chunk * (split - 1) >= inputs:
        raise InvalidInput.field("split", f"{split} pieces of {inputs} inputs: one would be empty")
    if inputs % 64 or codes.stride(1) != 1 or x.stride(1) != 1:
        raise InvalidInput.field("weight", f"has {inputs} inputs, which must be adjacent and a multiple of 64")
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs), split)
    int8_product[grid](
        x, codes, pieces, rows, outputs, inputs, x.stride(0), codes.stride(0), chunk,
        ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, num_warps=tile.warps, num_stages=tile.stages,
        **launch_options(),
    )  # fmt: skip
