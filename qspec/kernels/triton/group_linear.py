"""Linear layers over integer weights whose scales belong to groups of inputs, with 16-bit activations, row-invariant.

Codes are multiplied, not weights: fp16 holds each code exactly, so 64 inputs at a time are added up in fp32 by matrix
instructions, and that sum is multiplied by its group's scale and added to the others', ascending. Nothing is rounded to
fp16 on the way. Like ``plane_linear`` (whose words hold here) it computes ``W · xᵀ``, and ``split`` equal pieces of the
inputs are left to the next operation to add up; a row's bits depend on its own inputs and on ``split`` alone.

A step reads several groups of 64 inputs, so that 128 adjacent bytes of a row of codes are asked for at once.

A quantised activation may come as a whole number in fp16 (``elementwise``): products with it are exact as well, and its
token's scale is for the next operation. At the few rows of a draft the bytes of the weights take all the time, so
8-bit matrix instructions would gain nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.input_order import GROUP, arrange_weights
from qspec.kernels.triton.integers import merge_nibbles, widen_int8, widen_nibbles
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.plane_linear import Tile, finish_sums, piece_length


class Codes(IntEnum):
    """What lies in memory."""

    NIBBLES = 0
    """Two 4-bit codes to a byte, two's complement."""
    BOTH_NIBBLES = 1
    """8-bit codes in two such planes: 16 times the first, plus the second."""
    BYTES = 2
    """int8 codes."""


_BYTES, _BOTH = tl.constexpr(2), tl.constexpr(1)

_STEP = 256
"""Inputs of a step: 128 bytes of nibbles."""
TILES = {rows: Tile(rows=rows, outputs=64, inputs=_STEP, warps=4, stages=3) for rows in (16, 32, 64)}
"""Up to how many rows → tile. Estimated, not yet measured."""


@triton.jit
def _join_codes(even, odd, OUTPUTS: tl.constexpr):
    """``[OUTPUTS, 64]`` of the even-numbered inputs and the odd ones, in the order of the matrix instructions."""
    return arrange_weights(tl.join(even, odd).reshape(OUTPUTS, 64), OUTPUTS, 64)


@triton.jit
def _scales_of(scales, at, stop, SIXTY_FOURS: tl.constexpr):
    """The scales of some rows for the 64 inputs from ``at`` on; ``scales`` points at each row's first."""
    return tl.load(scales + at // (64 * SIXTY_FOURS), mask=at < stop, other=0.0)


@triton.jit
def _add_group(
    total, scale, x, x_at, of_row, codes, low, code_at, at, stop,
    CODES: tl.constexpr, WHOLE: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """``total`` and the scaled sum of the 64 inputs from ``at`` on."""
    width: tl.constexpr = 64 if CODES == _BYTES else 32
    from_ = code_at + tl.multiple_of(at * width // 64, 32)
    if WHOLE:
        first = tl.load(codes + from_)
        second = tl.load(low + from_) if CODES == _BOTH else first
        activations = tl.load(x + x_at + at, mask=of_row, other=0.0)
    else:
        there = at < stop
        first = tl.load(codes + from_, mask=there, other=0)
        second = tl.load(low + from_, mask=there, other=0) if CODES == _BOTH else first
        activations = tl.load(x + x_at + at, mask=of_row & there, other=0.0)
    if CODES == _BYTES:
        weights = arrange_weights(widen_int8(first), OUTPUTS, 64)
    elif CODES == _BOTH:
        even, odd = merge_nibbles(first, second)
        weights = _join_codes(even, odd, OUTPUTS)
    else:
        even, odd = widen_nibbles(first)
        weights = _join_codes(even, odd, OUTPUTS)
    return total + finish_sums(tl.dot(weights, activations)) * scale[:, None]


@triton.jit(do_not_specialize=["M"])
def group_product(
    x, codes, low, scales, pieces, M, N, K, stride, groups, chunk,
    CODES: tl.constexpr, SIXTY_FOURS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of one piece. ``groups``: scales of a row; ``SIXTY_FOURS``: how many 64 inputs a group has.

    Scales are read straight into registers, a step ahead, so that no multiplication waits for memory.
    """
    tile_m, tile_n, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = tile_m * ROWS + tl.arange(0, ROWS), tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    output = tl.minimum(columns, N - 1)
    code_at = output[:, None] * stride + tl.arange(0, 64 if CODES == _BYTES else 32)[None, :]
    of_output = scales + output * groups
    x_at, of_row = rows[None, :] * K + tl.arange(0, 64)[:, None], (rows < M)[None, :]
    start = piece * chunk
    wait_for_inputs(OVERLAP)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    stop = tl.minimum(start + chunk, K)
    first = _scales_of(of_output, start, stop, SIXTY_FOURS)
    second = _scales_of(of_output, start + 64, stop, SIXTY_FOURS)
    third = _scales_of(of_output, start + 128, stop, SIXTY_FOURS)
    fourth = _scales_of(of_output, start + 192, stop, SIXTY_FOURS)
    for k in range(start, stop, 256):
        next_first = _scales_of(of_output, k + 256, stop, SIXTY_FOURS)
        next_second = _scales_of(of_output, k + 320, stop, SIXTY_FOURS)
        next_third = _scales_of(of_output, k + 384, stop, SIXTY_FOURS)
        next_fourth = _scales_of(of_output, k + 448, stop, SIXTY_FOURS)
        total = _add_group(total, first, x, x_at, of_row, codes, low, code_at, k, stop, CODES, WHOLE, OUTPUTS)
        total = _add_group(total, second, x, x_at, of_row, codes, low, code_at, k + 64, stop, CODES, WHOLE, OUTPUTS)
        total = _add_group(total, third, x, x_at, of_row, codes, low, code_at, k + 128, stop, CODES, WHOLE, OUTPUTS)
        total = _add_group(total, fourth, x, x_at, of_row, codes, low, code_at, k + 192, stop, CODES, WHOLE, OUTPUTS)
        first, second, third, fourth = next_first, next_second, next_third, next_fourth
    at = rows[None, :] * N + columns[:, None]
    tl.store(pieces + piece * M * N + at, total, mask=(rows[None, :] < M) & (columns[:, None] < N))


@dataclass(frozen=True, slots=True)
class GroupWeight:
    """A weight ``[N, K]`` as the kernel reads it: K a multiple of 64, N of 16, codes adjacent in a row."""

    codes: Tensor
    """``[N, K / 2]`` uint8, or int8 ``[N, K]``; rows may lie further apart."""
    low: Tensor | None
    """The second plane of nibbles, which lies like the first."""
    scales: Tensor
    """``[N, K / group size]`` fp32."""
    group_size: int
    """A multiple of 64."""

    def __post_init__(self) -> None:
        outputs, inputs = self.shape
        if inputs % GROUP or outputs % 16 or self.group_size % GROUP:
            raise InvalidInput.field("weight", f"has shape {outputs}×{inputs} in groups of {self.group_size}; inputs "
                                               f"and groups must be multiples of {GROUP}, outputs of 16")
        if self.scales.shape != (outputs, -(-inputs // self.group_size)) or not self.scales.is_contiguous():
            raise InvalidInput.field("weight", f"has scales of shape {tuple(self.scales.shape)}")
        strides = self.codes.stride()
        if strides[1] != 1 or strides[0] % 16 or (self.low is not None and self.low.stride() != strides):
            raise InvalidInput.field("weight", f"has strides {strides}; rows must be adjacent inputs, begin at "
                                               "multiples of 16 and lie alike in both planes")
        if outputs * strides[0] >= 1 << 31:
            raise InvalidInput.field("weight", "has 2³¹ bytes or more")

    @property
    def kind(self) -> Codes:
        """What lies in memory."""
        if self.codes.dtype is torch.int8:
            return Codes.BYTES
        return Codes.NIBBLES if self.low is None else Codes.BOTH_NIBBLES

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, width = self.codes.shape
        return outputs, width if self.kind is Codes.BYTES else 2 * width


def tile_for(rows: int) -> Tile:
    """The tile for a product of ``rows`` rows; it changes no bit."""
    return next((tile for up_to, tile in TILES.items() if rows <= up_to), TILES[64])


def group_pieces(x: Tensor, weight: GroupWeight, split: int, tile: Tile, pieces: Tensor) -> None:
    """``x · Wᵀ`` in ``split`` pieces that are not added up: fp32 ``[split, M, N]`` into ``pieces``.

    ``x``: fp16 ``[M, K]`` in the order of ``input_order``. ``tile.inputs`` is 256.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0]
    chunk = piece_length(inputs, split)
    if chunk * (split - 1) >= inputs:
        raise InvalidInput.field("split", f"{split} pieces of {inputs} inputs: one would be empty")
    if tile.inputs != _STEP:
        raise InvalidInput.field("tile", f"reads {tile.inputs} inputs at a time; the kernel reads {_STEP}")
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs), split)
    group_product[grid](
        x, weight.codes, weight.codes if weight.low is None else weight.low, weight.scales, pieces, rows, outputs,
        inputs, weight.codes.stride(0), weight.scales.shape[1], chunk,
        CODES=int(weight.kind), SIXTY_FOURS=weight.group_size // GROUP,
        WHOLE=chunk % tile.inputs == 0 and inputs % tile.inputs == 0,
        ROWS=tile.rows, OUTPUTS=tile.outputs, num_warps=tile.warps, num_stages=tile.stages,
        **launch_options(),
    )  # fmt: skip
