"""What lies between the linear layers, fused: residual, norms, activation, rotary positions, writing keys and values.

Every kernel reads the fp32 pieces of the product before it (``plane_linear``), adds them up from the first to the last,
scales them, and writes what the next product reads (``activation_forms``). A row is one program of one shape, and the
number of rows is no constant of the compiled kernel, so a row has the same bits whatever lies beside it. What no kernel
of a pass writes (scales, weights of norms, positions) is read before the wait for the product.
``qspec.kernels.elementwise``, ``qspec.quant.e4m3`` and ``qspec.quant.int8`` define the operations.

A scale per token needs its whole row. A norm has it in one program anyway; an activation's rows are several times as
wide, so blocks of them find their largest and keep their numbers for a second kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.activation_forms import Form, quantise
from qspec.kernels.triton.input_order import arranged
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.quant.planes import HIGH_SCALE

_PLANE_SCALE = tl.constexpr(HIGH_SCALE)
_BLOCK = 1024
"""Numbers of a row in a program, where a row is in several."""
_HEADS_AT_ONCE = 8
"""Heads of a row in a program: one each would be so many programs that starting them takes longer than their work."""


@triton.jit
def read_product(
    pieces, scale, token_scales, row, column, width, rows, mask, PIECES: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    """Some outputs of a product ``[rows, width]``: its pieces added up from the first to the last, and scaled.

    ``scale``: of these outputs. No kernel changes it, so it is read before the product is there.
    """
    at = row * width + column
    total = tl.load(pieces + at, mask=mask, other=0.0).to(tl.float32)
    for piece in tl.static_range(1, PIECES):
        total += tl.load(pieces + piece * rows.to(tl.int64) * width + at, mask=mask, other=0.0)
    if TOKENS:
        scale *= tl.load(token_scales + row) * _PLANE_SCALE
    return total * scale


@triton.jit(do_not_specialize=["M"])
def norm_kernel(
    residual, pieces, scales, token_scales, weight, out, out_scales, M, width, eps,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask = at < width
    gain = tl.load(weight + at, mask=mask, other=0.0)
    scale = tl.load(scales + at, mask=mask, other=0.0) if PIECES > 0 else gain
    wait_for_inputs(OVERLAP)
    x = tl.load(residual + row * width + at, mask=mask, other=0.0).to(tl.float32)
    if PIECES > 0:
        x += read_product(pieces, scale, token_scales, row, at, width, M, mask, PIECES, TOKENS)
        tl.store(residual + row * width + at, x, mask=mask)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps) * gain
    if FORM > 0:
        codes, scale = quantise(y, tl.max(tl.abs(y), 0), mask, FORM)
        tl.store(out + row * width + (arranged(at) if FORM == 3 else at), codes, mask=mask)
        tl.store(out_scales + row, scale)
    else:
        tl.store(out + row * width + arranged(at), y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def _silu_kernel(
    pieces, scales, token_scales, out, maxima, M, width,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, QUANTISE: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """``QUANTISE``: numbers as they are and in the usual order, beside the largest magnitude of each block."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    gate_scale = tl.load(scales + at, mask=mask, other=0.0)
    up_scale = tl.load(scales + at + width, mask=mask, other=0.0)
    wait_for_inputs(OVERLAP)
    gate = read_product(pieces, gate_scale, token_scales, row, at, 2 * width, M, mask, PIECES, TOKENS)
    up = read_product(pieces, up_scale, token_scales, row, at + width, 2 * width, M, mask, PIECES, TOKENS)
    y = gate / (1.0 + tl.exp(-gate)) * up
    if QUANTISE:
        tl.store(out + row * width + at, y, mask=mask)
        tl.store(maxima + row * tl.num_programs(1) + tl.program_id(1), tl.max(tl.abs(y), 0))
    else:
        tl.store(out + row * width + arranged(at), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _quantise_kernel(
    numbers, maxima, out, out_scales, width, blocks,
    FORM: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask, block = at < width, tl.arange(0, BLOCKS)
    largest = tl.max(tl.load(maxima + row * blocks + block, mask=block < blocks, other=0.0), 0)
    codes, scale = quantise(tl.load(numbers + row * width + at, mask=mask, other=0.0), largest, mask, FORM)
    tl.store(out + row * width + (arranged(at) if FORM == 3 else at), codes, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(out_scales + row, scale)


@triton.jit(do_not_specialize=["M"])
def _rotary_kernel(
    pieces, scales, token_scales, bias, head_norms, cos, sin, positions, slots, committed, block_table, queries, keys,
    values, M, table_stride, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
    PIECES: tl.constexpr, TOKENS: tl.constexpr, BIASED: tl.constexpr, NORMED: tl.constexpr, TAIL: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """``AT_ONCE`` heads of one row. ``BLOCK``: entries in a KV block, or with ``TAIL`` in a tail."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    half: tl.constexpr = HEAD_DIM // 2
    heads: tl.constexpr = HEADS + 2 * KV_HEADS
    width: tl.constexpr = heads * HEAD_DIM
    d = tl.arange(0, half)
    column = head[:, None] * HEAD_DIM + d[None, :]
    there = column < width
    first_scale = tl.load(scales + column, mask=there, other=0.0)
    second_scale = tl.load(scales + column + half, mask=there, other=0.0)
    position, slot = tl.load(positions + row), tl.load(slots + row).to(tl.int64)
    angle = position.to(tl.int64) * HEAD_DIM + d
    first_cos, first_sin = tl.load(cos + angle)[None, :], tl.load(sin + angle)[None, :]
    second_cos, second_sin = tl.load(cos + angle + half)[None, :], tl.load(sin + angle + half)[None, :]
    turned = (head < HEADS + KV_HEADS)[:, None]
    block, entry = slot, position
    if slot >= 0:
        if TAIL:
            entry = position - tl.load(committed + slot)
        else:
            block = tl.load(block_table + slot * table_stride + position // BLOCK).to(tl.int64)
            entry = position % BLOCK
    if BIASED:
        first_bias = tl.load(bias + column, mask=there, other=0.0)
        second_bias = tl.load(bias + column + half, mask=there, other=0.0)
    if NORMED:  # a weight per head, queries' then keys'
        of_head = turned & there
        first_weight = tl.load(head_norms + column, mask=of_head, other=0.0)
        second_weight = tl.load(head_norms + column + half, mask=of_head, other=0.0)
    wait_for_inputs(OVERLAP)
    first = read_product(pieces, first_scale, token_scales, row, column, width, M, there, PIECES, TOKENS)
    second = read_product(pieces, second_scale, token_scales, row, column + half, width, M, there, PIECES, TOKENS)
    if BIASED:
        first += first_bias
        second += second_bias
    if NORMED:
        mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD_DIM
        inverse = tl.rsqrt(mean + eps)[:, None]
        first = tl.where(turned, first * inverse * first_weight, first)
        second = tl.where(turned, second * inverse * second_weight, second)
    rotated = first * first_cos + second * first_sin
    other = second * second_cos + first * second_sin
    first, second = tl.where(turned, rotated, first), tl.where(turned, other, second)
    to, is_query = queries + row * HEADS * HEAD_DIM + column, (head < HEADS)[:, None] & there
    tl.store(to, first.to(queries.dtype.element_ty), mask=is_query)
    tl.store(to + half, second.to(queries.dtype.element_ty), mask=is_query)
    if slot >= 0:
        kept = there & (head >= HEADS)[:, None]
        kv_head = (head - HEADS) % KV_HEADS
        at = ((block * KV_HEADS + kv_head) * BLOCK + entry)[:, None] * HEAD_DIM + d[None, :]
        is_key, is_value = kept & turned, kept & (head >= HEADS + KV_HEADS)[:, None]
        tl.store(keys + at, first.to(keys.dtype.element_ty), mask=is_key)
        tl.store(keys + at + half, second.to(keys.dtype.element_ty), mask=is_key)
        tl.store(values + at, first.to(values.dtype.element_ty), mask=is_value)
        tl.store(values + at + half, second.to(values.dtype.element_ty), mask=is_value)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A product that is not yet added up."""

    numbers: Tensor
    """fp32 ``[pieces, M, N]`` (or of another type where it is a single piece)."""
    scales: Tensor
    """fp32 ``[N]``: the weight rows' powers of two."""
    token_scales: Tensor | None = None
    """fp32 ``[M]`` after a product of quantised activations, whose ``scales`` are 2⁸ times too large: an fp8 product
    lacks the plane's 2⁻⁸."""

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
    """``[M, K]``, in the form and order of ``form``."""
    scales: Tensor | None
    """fp32 ``[M]`` beside all forms but the plain 16-bit one."""

    @property
    def form(self) -> Form:
        """What ``values`` are."""
        if self.scales is None:
            return Form.HALF
        return {torch.float8_e4m3fn: Form.E4M3, torch.int8: Form.INT8}.get(self.values.dtype, Form.INT8_AS_HALF)


def rms_norm(residual: Tensor, added: Pieces | None, weight: Tensor, eps: float, out: Activations) -> None:
    """Add a product to ``residual`` ``[M, H]`` (fp32, in place), and its norm times ``weight`` (fp32) into ``out``."""
    rows, width = residual.shape
    _check_width(width)
    pointers = (residual, residual, residual) if added is None else added.pointers()
    norm_kernel[(rows,)](
        residual, *pointers, weight, out.values, _scales(out), rows, width, eps,
        PIECES=0 if added is None else added.count, TOKENS=added is not None and added.token_scales is not None,
        FORM=int(out.form), BLOCK=triton.next_power_of_2(width),
        num_warps=8 if out.scales is None else 16,
        **launch_options(),
    )  # fmt: skip


def silu_times_up(gate_up: Pieces, out: Activations) -> None:
    """``silu(gate) · up`` of a product ``[M, 2·I]`` (gate, then up) into ``out`` ``[M, I]``."""
    rows, width = out.values.shape
    _check_width(width)
    grid, device = (rows, triton.cdiv(width, _BLOCK)), out.values.device
    numbers = maxima = out.values
    if out.scales is not None:
        numbers = torch.empty(rows, width, dtype=torch.float32, device=device)
        maxima = torch.empty(grid, dtype=torch.float32, device=device)
    _silu_kernel[grid](
        *gate_up.pointers(), numbers, maxima, rows, width, PIECES=gate_up.count,
        TOKENS=gate_up.token_scales is not None, QUANTISE=out.scales is not None, BLOCK=_BLOCK, num_warps=4,
        **launch_options(),
    )  # fmt: skip
    if out.scales is not None:
        _quantise_kernel[grid](
            numbers, maxima, out.values, out.scales, width, grid[1], FORM=int(out.form),
            BLOCKS=triton.next_power_of_2(grid[1]), BLOCK=_BLOCK, num_warps=4, **launch_options())


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
    _rotary_kernel[(rows, triton.cdiv(heads + 2 * inputs.kv_heads, _HEADS_AT_ONCE))](
        *qkv.pointers(), qkv.scales if inputs.bias is None else inputs.bias,
        qkv.scales if inputs.norms is None else inputs.norms, inputs.cos, inputs.sin, places.positions, places.slots,
        committed, places.block_table, queries, keys, values, rows, places.block_table.shape[1], inputs.eps,
        HEADS=heads, KV_HEADS=inputs.kv_heads, HEAD_DIM=head_dim, BLOCK=keys.shape[2],
        AT_ONCE=_HEADS_AT_ONCE, PIECES=qkv.count,
        TOKENS=qkv.token_scales is not None, BIASED=inputs.bias is not None, NORMED=inputs.norms is not None,
        TAIL=places.committed is not None, num_warps=4, **launch_options(),
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
