"""Linear layers over one fp16 weight in two planes, for 1 to some hundred rows, row-invariant.

**Weights first.** The product is computed as ``W · xᵀ``: 64 outputs are the rows of a matrix instruction, the rows of
``x`` its columns. On Hopper that is ``wgmma`` for every number of rows, the merged weights go from registers straight
into the instruction, and each weight is merged once however many rows there are, as long as they fit one tile.

**One reduction tree.** A row's bits depend on its own inputs alone. Each output is a chain over 16 inputs at a time,
ascending, within each of ``split`` equal pieces of the inputs; the pieces are added from the first to the last.
``split`` is a property of the weight's shape (``tuned``), never of the number of rows; every other number (tile sizes,
warps, stages) only says which chains run side by side. Nothing is added by atomics. Merged weights
(``Weights.MERGED``) in the same order give the same bits, so long prefills may merge a matrix once and use larger
tiles.

**Whole lines.** Memory is read in lines of 128 bytes, and reads of half a line reach half the bandwidth (measured:
``benchmarks/gpu/NOTES.md``). So a tile reads 128 inputs or more of each row of a plane at a time, and rows begin at
multiples of 128 bytes (``row_stride``), which 4032 inputs without padding do not.

**Split products** leave fp32 pieces ``[split, M, N]``, which the next operation adds up as it reads them
(``elementwise``), or which the last program of a tile to arrive adds up (``finish``).
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
from qspec.kernels.triton.integers import widen_int8
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.planes import INTERPRETED, merge_planes, widen_plane
from qspec.quant.planes import HIGH_SCALE


class Weights(IntEnum):
    """What a product reads."""

    BOTH = 0
    """Both planes: the fp16 weight."""
    HIGH = 1
    """The high plane alone, with 16-bit activations: a draft."""
    MERGED = 2
    """fp16 weights that ``planes.merge_into`` rearranged."""
    INT8 = 3
    """int8 codes with a scale per row, for 16-bit activations."""


_HIGH, _MERGED, _INT8 = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
_PLANE_SCALE = tl.constexpr(HIGH_SCALE)
_WAITS_ARE_KNOWN = triton.__version__.startswith("3.6.")
"""Whether an instruction without ``finish_sums`` behind it is known to be waited for before its weights are rewritten:
that is the assembler's doing, seen in the machine code of Triton 3.6 and in the sums on a GPU. 3.7's is not serialised
everywhere."""
LINE = 128
"""Bytes that memory is read in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How a product is cut up; none of it changes a bit of the result."""

    rows: int
    """Rows of ``x`` in a program: 16, 32, … 256 (8 would take another matrix instruction)."""
    outputs: int = 64
    """Outputs in a program: 64 or a multiple."""
    inputs: int = 128
    """Inputs read at a time: 128 (64 reads half lines of planes), or 256."""
    warps: int = 4
    """4 (or 8, where there are at least 128 outputs)."""
    stages: int = 4
    """Reads in flight."""
    each_waits: bool = False
    """Whether each matrix instruction is waited for by itself: weights of the next one are then merged meanwhile, which
    is faster where instructions are long (256 rows) and slower where they are short (``finish_sums``). Of planes, and
    with a Triton that is known to do so, else all of a step are waited for at once."""


@triton.jit
def finish_sums(total):
    """The same sums, finished: matrix instructions that read registers must not run on while those are rewritten.

    Left to itself Triton has those of one step run into the next, where PTX allows no writing to their weights; and
    the assembler, once it sees anything else that sets the sums before they are finished (such as zeros after a loop
    of no steps, hence ``tl.assume``), makes each instruction wait for the one before, at a third of the speed. With
    one use of the sums at the end of each step they run back to back and are waited for once.
    """
    if INTERPRETED:
        return total
    return tl.inline_asm_elementwise("// $0", "=f,0", [total], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit(do_not_specialize=["M"])
def plane_product(
    x, high, low, scales, out, pieces, arrived, M, N, K, stride, chunk,
    SPLIT: tl.constexpr, FINISH: tl.constexpr, WEIGHTS: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, EACH_WAITS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile of one piece. ``WHOLE``: every read of ``INPUTS`` inputs lies inside its piece.

    ``stride``: from a weight's row to the next. ``SPLIT``: how many pieces there are, where they are added up here
    (``FINISH``).
    """
    tile_m, tile_n, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    rows, columns = tile_m * ROWS + tl.arange(0, ROWS), tile_n * OUTPUTS + tl.arange(0, OUTPUTS)
    depth = tl.arange(0, INPUTS)
    # Outputs past the end repeat the last one, rows are zeros that nobody has to fetch; neither is stored.
    weight_at = tl.minimum(columns, N - 1)[:, None] * stride + depth[None, :]
    x_at, of_row = rows[None, :] * K + depth[:, None], (rows < M)[None, :]
    start = piece * chunk
    wait_for_inputs(OVERLAP)
    total = tl.zeros((OUTPUTS, ROWS), tl.float32)
    stop = tl.minimum(start + chunk, K)
    # Of int8 codes with waits of their own an H200 gave wrong sums at 256 rows, so theirs are finished step by step.
    finished: tl.constexpr = WEIGHTS != _MERGED and (not EACH_WAITS or WEIGHTS == _INT8)
    if finished or (WEIGHTS == _MERGED and not EACH_WAITS):
        tl.assume(start < stop)
    for k in range(start, stop, INPUTS):
        if WHOLE:
            first = tl.load(high + weight_at + k)
            second = tl.load(low + weight_at + k) if WEIGHTS == 0 else first
            activations = tl.load(x + x_at + k, mask=of_row, other=0.0)
        else:
            inside = depth < stop - k
            first = tl.load(high + weight_at + k, mask=inside[None, :], other=0)
            second = tl.load(low + weight_at + k, mask=inside[None, :], other=0) if WEIGHTS == 0 else first
            activations = tl.load(x + x_at + k, mask=inside[:, None] & of_row, other=0.0)
        if WEIGHTS == _MERGED:
            weights = first
        elif WEIGHTS == _HIGH:
            weights = arrange_weights(widen_plane(first), OUTPUTS, INPUTS)
        elif WEIGHTS == _INT8:
            weights = arrange_weights(widen_int8(first), OUTPUTS, INPUTS)
        else:
            weights = arrange_weights(merge_planes(first, second), OUTPUTS, INPUTS)
        total = tl.dot(weights, activations, total)
        if finished:
            total = finish_sums(total)
    if WEIGHTS == _HIGH:
        total *= _PLANE_SCALE
    inside = (rows[None, :] < M) & (columns[:, None] < N)
    at = rows[None, :] * N + columns[:, None]
    if FINISH and SPLIT == 1:
        scale = tl.load(scales + columns, mask=columns < N, other=0.0)
        tl.store(out + at, (total * scale[:, None]).to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(pieces + piece * M * N + at, total, mask=inside)
    if FINISH and SPLIT > 1:
        tl.debug_barrier()  # every thread's part of the piece is written before one of them says so
        counter = arrived + tile_m * tl.num_programs(1) + tile_n
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            total = tl.zeros((OUTPUTS, ROWS), tl.float32)
            for other in tl.static_range(SPLIT):
                total += tl.load(pieces + other * M * N + at, mask=inside, other=0.0, cache_modifier=".cg")
            scale = tl.load(scales + columns, mask=columns < N, other=0.0)
            tl.store(out + at, (total * scale[:, None]).to(out.dtype.element_ty), mask=inside)
            tl.store(counter, 0)  # ready for the next product


@dataclass(frozen=True, slots=True)
class Workspace:
    """What split products need: one per stream that computes, shared by all its layers."""

    pieces: Tensor
    """fp32, at least ``split · M · N`` numbers."""
    arrived: Tensor
    """int32 zeros, at least one per tile; zeros again after each product."""

    @classmethod
    def of(cls, numbers: int, tiles: int, device: torch.device) -> Workspace:
        """Room for pieces of ``numbers`` numbers in all and for ``tiles`` tiles."""
        pieces = torch.empty(numbers, dtype=torch.float32, device=device)
        return cls(pieces, torch.zeros(tiles, dtype=torch.int32, device=device))


@dataclass(frozen=True, slots=True)
class PlaneWeight:
    """A weight as a kernel reads it; ``[N, K]`` with K a multiple of 64 and N of 16, adjacent in a row.

    Rows may lie further apart than K: ``row_stride`` says how far they should.
    """

    high: Tensor
    """The high plane (uint8), the merged weight (fp16), or codes (int8)."""
    low: Tensor | None
    """The low plane (uint8) where both are read."""
    scales: Tensor
    """``[N]`` fp32: the row's power of two, or of codes their scale."""

    def __post_init__(self) -> None:
        outputs, inputs = self.high.shape
        if inputs % GROUP or outputs % 16:
            raise InvalidInput.field("weight", f"has shape {outputs}×{inputs}; inputs must be a multiple of {GROUP}, "
                                               "outputs of 16")
        strides = self.high.stride()
        if strides[1] != 1 or strides[0] % 16 or (self.low is not None and self.low.stride() != strides):
            raise InvalidInput.field("weight", f"has strides {strides}; rows must be adjacent inputs, begin at "
                                               "multiples of 16 and lie alike in both planes")
        if outputs * strides[0] >= 1 << 31:
            raise InvalidInput.field("weight", "has 2³¹ elements or more")

    @property
    def reads(self) -> Weights:
        """What a product over it reads."""
        if self.high.dtype is torch.float16:
            return Weights.MERGED
        if self.high.dtype is torch.int8:
            return Weights.INT8
        return Weights.HIGH if self.low is None else Weights.BOTH


def row_stride(inputs: int) -> int:
    """From one row of a plane to the next, so that every row begins with a line of memory: at most 64 bytes more."""
    return -(-inputs // LINE) * LINE


def piece_length(inputs: int, split: int) -> int:
    """Inputs of each of ``split`` pieces (the last may be shorter): a multiple of 64."""
    return -(-inputs // GROUP // split) * GROUP


def product_pieces(x: Tensor, weight: PlaneWeight, split: int, tile: Tile, pieces: Tensor) -> None:
    """``x · Wᵀ`` in ``split`` pieces, neither added up nor scaled: fp32 ``[split, M, N]`` into ``pieces``.

    ``x``: fp16 ``[M, K]`` in the order of ``input_order``.
    """
    _launch(x, weight, split, tile, pieces, pieces, pieces, finish=False)


def product(x: Tensor, weight: PlaneWeight, split: int, tile: Tile, out: Tensor, workspace: Workspace) -> None:
    """``x · Wᵀ`` times the rows' scales into ``out`` ``[M, N]`` (fp16, bf16 or fp32); ``x`` as above."""
    _launch(x, weight, split, tile, out, workspace.pieces, workspace.arrived, finish=True)


def _launch(
    x: Tensor, weight: PlaneWeight, split: int, tile: Tile, out: Tensor, pieces: Tensor, arrived: Tensor, *,
    finish: bool,
) -> None:  # fmt: skip
    (rows, inputs), outputs = x.shape, weight.high.shape[0]
    chunk = piece_length(inputs, split)
    if chunk * (split - 1) >= inputs:
        raise InvalidInput.field("split", f"{split} pieces of {inputs} inputs: one would be empty")
    low = weight.high if weight.low is None else weight.low
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(outputs, tile.outputs), split)
    plane_product[grid](
        x, weight.high, low, weight.scales, out, pieces, arrived, rows, outputs, inputs,
        weight.high.stride(0), chunk,
        SPLIT=split if finish else 1, FINISH=finish, WEIGHTS=int(weight.reads),
        WHOLE=chunk % tile.inputs == 0 and inputs % tile.inputs == 0,
        ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, num_warps=tile.warps,
        num_stages=tile.stages, EACH_WAITS=tile.each_waits and _WAITS_ARE_KNOWN, **launch_options(),
    )  # fmt: skip
