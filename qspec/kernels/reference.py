"""The definition of every operation, in plain torch: what the fast kernels beside this file are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
"""What the 16 codes of NF4 stand for (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""
_FP4_MAGNITUDES = tuple(value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
BITSANDBYTES_FP4_VALUES = (*_FP4_MAGNITUDES, *(-value for value in _FP4_MAGNITUDES))
"""The same for the FP4 of bitsandbytes: a sign and three bits. It is not e2m1."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight + bias`` in float64: ``[rows, in] · [in, out]``."""
    y = x.double() @ weight.double()
    return y if bias is None else y + bias.double()


def quantize_rows_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per row: codes in -127..127, rounded to nearest even, and scales ``absmax / 127``.

    ``x``: ``[rows, K]``; codes ``[rows, K]`` int8, scales ``[rows, 1]`` float32. A row of zeros has scale 0.
    """
    absmax = x.abs().amax(-1, keepdim=True)
    divisor = torch.where(absmax > 0, absmax, torch.ones_like(absmax))
    codes = torch.round(x / divisor * 127.0).to(torch.int8)
    return codes, absmax / 127.0


def linear_w8a8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """int8 weights per output channel times int8 activations per token; the integer sum is exact.

    ``x``: ``[rows, in]``, ``codes``: ``[out, in]`` int8, ``scales``: ``[out]``; returns ``[rows, out]`` float64.
    """
    x_codes, x_scales = quantize_rows_int8(x.float())
    total = x_codes.long() @ codes.long().t()
    y = total.double() * x_scales.double() * scales.double()
    return y if bias is None else y + bias.double()


def linear_int8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """int8 (or int4) weights alone, symmetric: ``x · (codes · scale of the group)`` in float64.

    ``codes``: ``[out, in]`` integers, ``scales``: ``[out, groups]``; a single group is a scale per output channel.
    """
    return linear(x, (codes.double() * _per_input(scales, codes)).t(), bias)


def linear_bitsandbytes(
    x: Tensor, codes: Tensor, scales: Tensor, values: tuple[float, ...], bias: Tensor | None
) -> Tensor:
    """4-bit weights alone that number an entry of the 16 ``values`` each: ``x · (value · scale of the group)``.

    ``codes``: ``[out, in]`` uint8 below 16, ``scales``: ``[out, groups]``.
    """
    table = torch.tensor(values, dtype=torch.float64)
    return linear(x, (table[codes.long()] * _per_input(scales, codes)).t(), bias)


def linear_int4_asymmetric(x: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None) -> Tensor:
    """4-bit weights alone with zero points: ``x · ((codes - zero) · scale)``; ``zeros`` as ``scales``."""
    return linear(x, ((codes.double() - _per_input(zeros, codes)) * _per_input(scales, codes)).t(), bias)


def linear_int4_minimum(x: Tensor, codes: Tensor, scales: Tensor, minima: Tensor, bias: Tensor | None) -> Tensor:
    """4-bit weights alone with a minimum per group: ``x · (code · scale + minimum)``; ``minima`` as ``scales``."""
    return linear(x, (codes.double() * _per_input(scales, codes) + _per_input(minima, codes)).t(), bias)


def linear_w4a8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """int4 weights in groups times int8 activations per token."""
    x_codes, x_scales = quantize_rows_int8(x.float())
    return linear_int8(x_codes.double() * x_scales.double(), codes, scales, bias)


def linear_fp8(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """e4m3 weights per row times e4m3 activations per token; ``scales``: ``[out, 1]``; the largest code is 448."""
    largest = x.float().abs().amax(-1, keepdim=True)
    x_scales = largest / 448.0
    divisor = torch.where(largest > 0, x_scales, torch.ones_like(largest))
    x_codes = (x.float() / divisor).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return linear(x_codes.double() * x_scales.double(), (codes.double() * scales.double()).t(), bias)


def linear_fp8_plane(x: Tensor, high: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """The high plane of fp16 weights alone: its e4m3 numbers times 2⁻⁸ and the row's power of two ``[out, 1]``."""
    return linear(x, (high.double() * 2.0**-8 * scales.double()).t(), bias)


def linear_fp16(x: Tensor, rows: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """fp16 weights, both planes together, times the row's power of two ``[out, 1]``."""
    return linear(x, (rows.double() * scales.double()).t(), bias)


def linear_fp4(x_values: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """e2m1 weights in blocks; ``scales`` ``[out, blocks]`` are whole (an NVFP4 block's times its tensor's).

    ``codes``: ``[out, in]`` uint8 below 16. ``x_values`` are activations that went through the same kind of blocks.
    """
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)
    values = magnitudes[(codes & 7).long()] * torch.where(codes >= 8, -1.0, 1.0).double()
    return linear(x_values, (values * _per_input(scales, codes)).t(), bias)


def _per_input(scales: Tensor, codes: Tensor) -> Tensor:
    """``[out, groups]`` repeated to ``[out, in]``, float64."""
    return scales.double().repeat_interleave(codes.shape[-1] // scales.shape[-1], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Causal attention with grouped queries in float64.

    ``q``: ``[rows, heads, D]`` at ``positions`` ``[rows]``; ``k``, ``v``: ``[context, kv_heads, D]`` at 0, 1, …;
    a row sees the keys up to its own position. Returns ``[rows, heads·D]``.
    """
    rows, heads, head_dim = q.shape
    group = heads // k.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("rhd,chd->hrc", q.double(), k) / head_dim**0.5
    hidden = torch.arange(k.shape[0])[None, :] > positions[:, None]
    probs = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hrc,chd->rhd", probs, v).reshape(rows, heads * head_dim)
