"""What lies between the linear layers, fused: residual, norms, activation, rotary positions, writing keys and values.

Every kernel reads the fp32 pieces of the product before it (``plane_linear``), adds them up from the first to the last,
scales them, and writes what the next product reads: fp16 in the order of ``input_order``, or e4m3 with a scale per
token in the usual one. A row is one program of one shape, and the number of rows is no constant of the compiled kernel,
so a row has the same bits whatever lies beside it. ``qspec.kernels.elementwise`` and ``qspec.quant.e4m3`` define the
operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.input_order import arranged
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.kernels.triton.planes import INTERPRETED
from qspec.quant.planes import HIGH_SCALE

_PLANE_SCALE = tl.constexpr(HIGH_SCALE)


@triton.jit
def read_product(
    pieces, scales, token_scales, row, column, width, rows, mask, PIECES: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    """Some outputs of a product ``[rows, width]``: its pieces added up from the first to the last, and scaled."""
    at = row * width + column
    total = tl.load(pieces + at, mask=mask, other=0.0).to(tl.float32)
    for piece in tl.static_range(1, PIECES):
        total += tl.load(pieces + piece * rows.to(tl.int64) * width + at, mask=mask, other=0.0)
    scale = tl.load(scales + column, mask=mask, other=0.0)
    if TOKENS:
        scale *= tl.load(token_scales + row) * _PLANE_SCALE
    return total * scale


@triton.jit
def _to_e4m3(y):
    """The nearest e4m3 numbers of values up to 448, ties to even."""
    if INTERPRETED:  # whose own conversion loses the carry where rounding reaches the next power of two
        bits = y.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        below = (tl.abs(y) * 512.0 + 12582912.0).to(tl.int32, bitcast=True) & 0xFF  # rounds at 2⁻⁹
        code = tl.where(magnitude >= 121 << 23, normal, below) | ((bits >> 24) & 0x80)
        return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    return y.to(tl.float8e4nv)


@triton.jit
def _store_activations(y, row, width, out, out_scales, at, mask, QUANTISE: tl.constexpr):
    """A whole row: e4m3 with the row's scale, or the element type of ``out`` in the order of the linear layers."""
    if QUANTISE:
        scale = tl.max(tl.abs(y), 0) / 448.0
        codes = tl.math.div_rn(y, tl.where(scale > 0.0, scale, 1.0) + tl.zeros_like(y))
        tl.store(out + row * width + at, _to_e4m3(tl.clamp(codes, -448.0, 448.0)), mask=mask)
        tl.store(out_scales + row, scale)
    else:
        tl.store(out + row * width + arranged(at), y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _norm_kernel(
    residual, pieces, scales, token_scales, weight, out, out_scales, M, width, eps,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = at < width
    x = tl.load(residual + row * width + at, mask=mask, other=0.0).to(tl.float32)
    if PIECES > 0:
        x += read_product(pieces, scales, token_scales, row, at, width, M, mask, PIECES, TOKENS)
        tl.store(residual + row * width + at, x, mask=mask)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * tl.load(weight + at, mask=mask, other=0.0)
    _store_activations(y, row, width, out, out_scales, at, mask, QUANTISE)


@triton.jit(do_not_specialize=["M"])
def _silu_kernel(
    pieces, scales, token_scales, out, out_scales, M, width,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    gate = read_product(pieces, scales, token_scales, row, at, 2 * width, M, mask, PIECES, TOKENS)
    up = read_product(pieces, scales, token_scales, row, at + width, 2 * width, M, mask, PIECES, TOKENS)
    y = gate / (1.0 + tl.exp(-gate)) * up
    _store_activations(y, row, width, out, out_scales, at, mask, QUANTISE)


@triton.jit(do_not_specialize=["M"])
def _rotary_kernel(
    pieces, scales, token_scales, bias, head_norms, cos, sin, positions, slots, committed, block_table, queries, keys,
    values, M, table_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, BIASED: tl.constexpr, NORMED: tl.constexpr, TAIL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One head of one row. ``BLOCK``: entries in a KV block, or with ``TAIL`` in a tail."""
    wait_for_inputs(OVERLAP)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD_DIM // 2
    width: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    d = tl.arange(0, half)
    column, everywhere = head * HEAD_DIM + d, d >= 0
    first = read_product(pieces, scales, token_scales, row, column, width, M, everywhere, PIECES, TOKENS)
    second = read_product(pieces, scales, token_scales, row, column + half, width, M, everywhere, PIECES, TOKENS)
    if BIASED:
        first += tl.load(bias + column)
        second += tl.load(bias + column + half)
    position = tl.load(positions + row)
    if head < HEADS + KV_HEADS:
        if NORMED:  # a weight per head, queries' then keys'
            mean = (tl.sum(first * first, 0) + tl.sum(second * second, 0)) / HEAD_DIM
            inverse = tl.rsqrt(mean + eps)
            first = first * inverse * tl.load(head_norms + column)
            second = second * inverse * tl.load(head_norms + column + half)
        angle = position.to(tl.int64) * HEAD_DIM + d
        rotated = first * tl.load(cos + angle) + second * tl.load(sin + angle)
        second = second * tl.load(cos + angle + half) + first * tl.load(sin + angle + half)
        first = rotated
    if head < HEADS:
        to = queries + (row * HEADS + head) * HEAD_DIM + d
        tl.store(to, first.to(queries.dtype.element_ty))
        tl.store(to + half, second.to(queries.dtype.element_ty))
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            if TAIL:
                block, entry = slot, position - tl.load(committed + slot)
            else:
                block = tl.load(block_table + slot * table_stride + position // BLOCK).to(tl.int64)
                entry = position % BLOCK
            kv_head = (head - HEADS) % KV_HEADS
            at = ((block * KV_HEADS + kv_head) * BLOCK + entry) * HEAD_DIM + d
            cache = keys if head < HEADS + KV_HEADS else values
            tl.store(cache + at, first.to(cache.dtype.element_ty))
            tl.store(cache + at + half, second.to(cache.dtype.element_ty))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A product that is not yet added up."""

    numbers: Tensor
    """fp32 ``[pieces, M, N]`` (or of another type where it is a single piece)."""
    scales: Tensor
    """fp32 ``[N]``: the weight rows' powers of two."""
    token_scales: Tensor | None = None
    """fp32 ``[M]`` after an fp8 product, which lacks the plane's 2⁻⁸, too."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self.numbers.shape[0]

    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What kernels take; the last one is not read where there are no scales per token."""
        return self.numbers, self.scales, self.scales if self.token_scales is None else self.token_scales


@dataclass(frozen=True, slots=True)
class Activations:
    """What a linear layer reads."""

    values: Tensor
    """``[M, K]``: fp16 in the order of ``input_order``, or e4m3 in the usual one."""
    scales: Tensor | None
    """fp32 ``[M]`` beside e4m3."""


def rms_norm(residual: Tensor, added: Pieces | None, weight: Tensor, eps: float, out: Activations) -> None:
    """Add a product to ``residual`` ``[M, H]`` (fp32, in place), and its norm times ``weight`` (fp32) into ``out``."""
    rows, width = residual.shape
    _check_width(width)
    pointers = (residual, residual, residual) if added is None else added.pointers()
    _norm_kernel[(rows,)](
        residual, *pointers, weight, out.values, _scales(out), rows, width, eps,
        PIECES=0 if added is None else added.count, TOKENS=added is not None and added.token_scales is not None,
        QUANTISE=out.scales is not None, BLOCK=triton.next_power_of_2(width), num_warps=8,
        **launch_options(),
    )  # fmt: skip


def silu_times_up(gate_up: Pieces, out: Activations) -> None:
    """``silu(gate) · up`` of a product ``[M, 2·I]`` (gate, then up) into ``out`` ``[M, I]``."""
    rows, width = out.values.shape
    _check_width(width)
    whole_row = out.scales is not None  # a scale per token needs its whole row in one program
    block = triton.next_power_of_2(width) if whole_row else 1024
    _silu_kernel[(rows, triton.cdiv(width, block))](
        *gate_up.pointers(), out.values, _scales(out), rows, width, PIECES=gate_up.count,
        TOKENS=gate_up.token_scales is not None, QUANTISE=whole_row, BLOCK=block, num_warps=16 if whole_row else 4,
        **launch_options(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInputs:
    """What queries and keys go through on their way to attention."""

    heads: int
    kv_heads: int
    cos: Tensor
    """fp32 ``[positions, D]`` (``qspec.kernels.elementwise.rotary_table``), D a power of two."""
    sin: Tensor
    bias: Tensor | None = None
    """fp32 ``[(heads + 2·kv_heads)·D]``."""
    norms: Tensor | None = None
    """fp32 ``[(heads + kv_heads)·D]``: norm weights, each head's own."""
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class RowPlaces:
    """Where the rows of a pass belong; all int32."""

    positions: Tensor
    """``[M]``."""
    slots: Tensor
    """``[M]``; -1: nothing of this row is kept."""
    block_table: Tensor
    """``[slots, blocks]``: the KV blocks of each slot."""
    committed: Tensor | None = None
    """``[slots]`` committed positions, when entries go to tails, or None: to the blocks."""


def rotate_and_store(
    qkv: Pieces, inputs: HeadInputs, places: RowPlaces, queries: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Split a product into queries (into ``queries`` ``[M, heads, D]``), keys and values (into the cache), rotated.

    ``keys``, ``values``: one layer's ``[blocks, kv_heads, block, D]``, or with ``places.committed`` the tails
    ``[slots, kv_heads, k_max, D]``.
    """
    rows, heads, head_dim = queries.shape
    if head_dim & (head_dim - 1):
        raise InvalidInput.field("head_dim", f"is {head_dim}; the kernel needs a power of two")
    committed = places.positions if places.committed is None else places.committed
    _rotary_kernel[(rows, heads + 2 * inputs.kv_heads)](
        *qkv.pointers(), qkv.scales if inputs.bias is None else inputs.bias,
        qkv.scales if inputs.norms is None else inputs.norms, inputs.cos, inputs.sin, places.positions, places.slots,
        committed, places.block_table, queries, keys, values, rows, places.block_table.shape[1], inputs.eps,
        HEADS=heads, KV_HEADS=inputs.kv_heads, HEAD_DIM=head_dim, BLOCK=keys.shape[2], PIECES=qkv.count,
        TOKENS=qkv.token_scales is not None, BIASED=inputs.bias is not None, NORMED=inputs.norms is not None,
        TAIL=places.committed is not None, num_warps=1, **launch_options(),
    )  # fmt: skip


def _scales(out: Activations) -> Tensor:
    """Some pointer where a kernel takes scales that it does not write."""
    return out.values if out.scales is None else out.scales


def _check_width(width: int) -> None:
    if width % 64 or width > 1 << 15:
        raise InvalidInput.field("width", f"is {width}; the kernels take multiples of 64 up to {1 << 15}")


def empty_activations(rows: int, width: int, device: torch.device, *, quantised: bool) -> Activations:
    """Room for a linear layer's input."""
    dtype = torch.float8_e4m3fn if quantised else torch.float16
    scales = torch.empty(rows, dtype=torch.float32, device=device) if quantised else None
    return Activations(torch.empty(rows, width, dtype=dtype, device=device), scales)
