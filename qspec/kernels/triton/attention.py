"""Attention over KV blocks for the rows of a verify pass (1, k + 1, or a prefill chunk's) and of a draft step.

A context is cut into pieces of a fixed number of positions, whatever the batch. A program attends a tile of rows of one
sequence, with all queries of one key/value head, over one piece; a second kernel adds a row's pieces up from the first
to the last. In each program a warp has 16 rows to itself (64 rows, four warps, one kind of matrix instruction), so the
sums along a row are made by the same four threads in the same order wherever it lies; keys behind a row's own position
contribute exact zeros. So a row's bits depend on its query and its keys alone, and a prefill chunk's rows have those
that decoding them one by one gives. Decoding wastes 60 of the 64 rows: the keys' bytes are what it waits for. Those of
the next steps are on their way meanwhile, as long as KV blocks are cut as steps are (``block_size`` a multiple of 64
that divides a piece): a block's number that has to be read first comes too late for that.

``qspec.kernels.reference.attention`` is the definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.device_limits import DeviceLimits, device_limits
from qspec.kernels.triton.input_order import arranged
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs

PIECE = 256
"""Positions of a piece, if nothing else is asked for. Part of what defines a row's bits: one value for a stack."""
TILE = 64
"""Rows times queries per key/value head in a tile, at most."""
_INNER = 64
_NARROW_HEAD = 64
_MERGED_AT_ONCE = 16


@triton.jit(do_not_specialize=["rows"])
def _attend(
    queries, keys, values, tail_keys, tail_values, tiles, positions, committed, block_table, sums, maxima, totals,
    rows, table_stride, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
    PIECE: tl.constexpr, INNER: tl.constexpr, TILE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One tile over one piece. ``TAIL``: entries of a tail, whose piece is the last one; 0: the blocks hold all."""
    tile, kv_head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, count, slot = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1), tl.load(tiles + tile * 3 + 2)
    group: tl.constexpr = HEADS // KV_HEADS
    member, d = tl.arange(0, TILE), tl.arange(0, HEAD_DIM)
    inside = member // group < count
    row = first + tl.minimum(member // group, tl.maximum(count - 1, 0))
    start, is_tail = piece * PIECE, False
    if TAIL > 0:
        length = tl.load(committed + slot)
        is_tail = piece == tl.num_programs(2) - 1
        beyond = tl.load(positions + first) + 1 - length  # entries of the tail: one row a tile
        start, stop = tl.where(is_tail, 0, start), tl.where(is_tail, beyond, tl.minimum(start + PIECE, length))
        limit = stop + tl.zeros_like(row)
    else:
        limit = tl.load(positions + row) + 1
        stop = tl.minimum(start + PIECE, tl.load(positions + first + tl.maximum(count - 1, 0)) + 1)
    WHOLE: tl.constexpr = BLOCK % INNER == 0 and PIECE % BLOCK == 0
    if WHOLE:  # the blocks' numbers are there, so that keys can be asked for while those before them are multiplied
        of_piece = tl.arange(0, PIECE // BLOCK)
        entries = block_table + slot * table_stride + start // BLOCK + of_piece
        blocks = tl.load(entries, mask=start + of_piece * BLOCK < stop, other=0)
    wait_for_inputs(OVERLAP)
    if (count > 0) & (start < stop):
        head = kv_head * group + member % group
        q = tl.load(queries + (row * HEADS + head)[:, None] * HEAD_DIM + d[None, :])
        highest = tl.full((TILE,), float("-inf"), tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        mixed = tl.zeros((TILE, HEAD_DIM), tl.float32)
        for k in range(start, stop, INNER):
            key = k + tl.arange(0, INNER)
            there = key < stop
            if WHOLE:
                block = tl.sum(tl.where(of_piece == (k - start) // BLOCK, blocks, 0), 0).to(tl.int64)
            else:
                block = tl.load(block_table + slot * table_stride + key // BLOCK, mask=there, other=0).to(tl.int64)
            entry = (block * KV_HEADS + kv_head) * BLOCK + key % BLOCK
            k_from, v_from = keys, values
            if TAIL > 0:
                entry = tl.where(is_tail, (slot.to(tl.int64) * KV_HEADS + kv_head) * TAIL + key, entry)
                k_from = tail_keys if is_tail else keys
                v_from = tail_values if is_tail else values
            entry *= HEAD_DIM
            k_tile = tl.load(k_from + entry[None, :] + d[:, None], mask=there[None, :], other=0.0)
            v_tile = tl.load(v_from + entry[:, None] + d[None, :], mask=there[:, None], other=0.0)
            scores = tl.dot(q, k_tile) * scale
            scores = tl.where(key[None, :] < limit[:, None], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees none of these keys
            weights = tl.exp2(scores - base[:, None])
            kept = tl.exp2(highest - base)
            total = total * kept + tl.sum(weights, 1)
            mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * kept[:, None])
            highest = higher
        at = (piece.to(tl.int64) * rows + row) * HEADS + head
        tl.store(maxima + at, highest, mask=inside)
        tl.store(totals + at, total, mask=inside)
        tl.store(sums + at[:, None] * HEAD_DIM + d[None, :], mixed, mask=inside[:, None])


@triton.jit(do_not_specialize=["rows", "pieces"])
def _merge(
    sums, maxima, totals, positions, slots, committed, out, rows, pieces,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TAIL: tl.constexpr, PIECE: tl.constexpr, AT_ONCE: tl.constexpr,
    ARRANGE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A row's pieces of one head."""
    row, head, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, HEAD_DIM)
    slot = tl.load(slots + row)
    length = tl.load(committed + tl.maximum(slot, 0)) if TAIL else tl.load(positions + row) + 1
    wait_for_inputs(OVERLAP)
    if slot >= 0:
        filled = tl.cdiv(length, PIECE)
        highest = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        mixed = tl.zeros((HEAD_DIM,), tl.float32)
        for start in range(0, pieces if TAIL else filled, AT_ONCE):
            piece = start + tl.arange(0, AT_ONCE)
            there = piece < filled
            if TAIL:
                there = there | (piece == pieces - 1)
            at = (piece.to(tl.int64) * rows + row) * HEADS + head
            peak = tl.load(maxima + at, mask=there, other=float("-inf"))
            higher = tl.maximum(highest, tl.max(peak, 0))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            share, kept = tl.exp2(peak - base), tl.exp2(highest - base)
            total = total * kept + tl.sum(tl.load(totals + at, mask=there, other=0.0) * share, 0)
            parts = tl.load(sums + at[:, None] * HEAD_DIM + d[None, :], mask=there[:, None], other=0.0)
            mixed = mixed * kept + tl.sum(parts * share[:, None], 0)
            highest = higher
        column = head * HEAD_DIM + d
        to = out + row * HEADS * HEAD_DIM + (arranged(column) if ARRANGE else column)
        tl.store(to, (mixed / total).to(out.dtype.element_ty))


@dataclass(frozen=True, slots=True)
class Context:
    """One layer's cache as attention reads it."""

    keys: Tensor
    """fp16 or bf16 ``[blocks, kv_heads, block, D]``."""
    values: Tensor
    block_table: Tensor
    """int32 ``[slots, blocks]``."""
    tail_keys: Tensor | None = None
    """``[slots, kv_heads, k_max, D]`` in a draft step."""
    tail_values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a pass; all int32."""

    positions: Tensor
    """``[M]``."""
    slots: Tensor
    """``[M]``; -1: padding."""
    tiles: Tensor
    """``[tiles, 3]`` from ``plan_tiles``."""
    committed: Tensor | None = None
    """``[slots]`` committed positions that tails follow, in a draft step."""


@dataclass(frozen=True, slots=True)
class AttentionWorkspace:
    """What the pieces are kept in: one per stream that computes, shared by all layers."""

    sums: Tensor
    """fp32 ``[pieces, M, heads, D]``."""
    maxima: Tensor
    """fp32 ``[pieces, M, heads]``."""
    totals: Tensor
    piece: int
    """Positions of a piece."""

    @classmethod
    def of(
        cls, max_positions: int, rows: int, heads: int, head_dim: int, device: torch.device, piece: int = PIECE
    ) -> AttentionWorkspace:
        """Room for ``rows`` rows over contexts of up to ``max_positions``, and a tail."""
        pieces = triton.cdiv(max_positions, piece) + 1
        sums = torch.empty(pieces, rows, heads, head_dim, dtype=torch.float32, device=device)
        maxima, totals = torch.empty(2, pieces, rows, heads, dtype=torch.float32, device=device)
        return cls(sums, maxima, totals, piece)


def plan_tiles(counts: Sequence[tuple[int, int]], group: int, length: int) -> Tensor:
    """Tiles ``[length, 3]`` (first row, rows, slot), int32, for sequences of (slot, adjacent rows) in this order.

    ``group``: queries per key/value head. The rest is empty tiles, so that one CUDA graph serves many passes.
    ``InvalidInput`` when they are more than ``length``.
    """
    per_tile, first, tiles = max(1, TILE // group), 0, []
    for slot, count in counts:
        tiles += [(first + at, min(per_tile, count - at), slot) for at in range(0, count, per_tile)]
        first += count
    if len(tiles) > length:
        raise InvalidInput.field("rows", f"need {len(tiles)} tiles of attention, {length} were provided for")
    return torch.tensor(tiles + [(0, 0, 0)] * (length - len(tiles)), dtype=torch.int32)


def stages_of(head_dim: int, limits: DeviceLimits) -> int:
    """Keys and values of two steps in flight, or of one where heads are wide, so that two programs fit."""
    tile = TILE * head_dim * 2
    wanted = 3 if head_dim <= _NARROW_HEAD else 2
    return max(replace(limits, shared_bytes=limits.shared_bytes - tile).stages(wanted, 2 * tile), 2)


def attend(
    queries: Tensor, context: Context, rows: Rows, workspace: AttentionWorkspace, out: Tensor, *,
    rearrange: bool = True, pieces: int | None = None,
) -> None:  # fmt: skip
    """Attend ``queries`` ``[M, heads, D]`` (D a power of two from 16) over their contexts: ``out`` ``[M, heads·D]``.

    A row sees the positions up to its own; in a draft step, with one row a sequence, the committed ones and its tail.
    With ``rearrange`` the result is in the order of ``input_order``. ``pieces``: of the longest context (a graph's
    bucket); None: all that the workspace holds, tail included. Padding rows of ``out`` are left as they are.
    """
    count, heads, head_dim = queries.shape
    kv_heads, block = context.keys.shape[1:3]
    if head_dim & (head_dim - 1) or heads // kv_heads > TILE:
        raise InvalidInput.field("heads", f"of {head_dim} with {heads // kv_heads} queries each: no kernel")
    tails = context.tail_keys is not None
    tail_keys = context.keys if context.tail_keys is None else context.tail_keys
    tail_values = context.values if context.tail_values is None else context.tail_values
    committed = rows.positions if rows.committed is None else rows.committed
    pieces = workspace.sums.shape[0] if pieces is None else pieces + tails
    _attend[(rows.tiles.shape[0], kv_heads, pieces)](
        queries, context.keys, context.values, tail_keys, tail_values, rows.tiles, rows.positions, committed,
        context.block_table, workspace.sums, workspace.maxima, workspace.totals, count, context.block_table.shape[1],
        head_dim**-0.5 * math.log2(math.e), HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK=block,
        TAIL=tail_keys.shape[2] if tails else 0, PIECE=workspace.piece, INNER=_INNER, TILE=TILE, num_warps=4,
        num_stages=stages_of(head_dim, device_limits()), **launch_options(),
    )  # fmt: skip
    _merge[(count, heads)](
        workspace.sums, workspace.maxima, workspace.totals, rows.positions, rows.slots, committed, out, count, pieces,
        HEADS=heads, HEAD_DIM=head_dim, TAIL=tails, PIECE=workspace.piece, AT_ONCE=_MERGED_AT_ONCE, ARRANGE=rearrange,
        num_warps=4, **launch_options(),
    )  # fmt: skip
