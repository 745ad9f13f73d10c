"""One weight in two planes: the drafter reads the first, the verifier both.

**fp16** (the idea of NestedFP, arXiv 2506.02024). An fp16 number below 2 has its highest exponent bit clear. ``high``
is its sign, the other 4 exponent bits and the top 3 mantissa bits, rounded to nearest even: exactly the e4m3 number
nearest to 2⁸ times the weight. ``low`` is the low byte of the fp16 word; its top bit is the lowest bit of ``high``
before the rounding, which is undone from it. Up to 1.75 the rounding cannot leave e4m3's range; rows with larger
weights are divided by a power of two first, exact but for weights that fall into fp16's subnormals.

**int8**. A code c in -119..119 is ``16·high + low`` with ``high = (c + 8) >> 4`` in -7..7, c / 16 rounded to nearest (a
tie upwards), and ``low`` in -8..7. Codes beyond ±119 would need a ninth value on one side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant import e4m3
from qspec.quant.groups import require_finite

LARGEST_FP16 = 1.75
"""The largest magnitude that can be split."""
HIGH_SCALE = 2.0**-8
"""A high plane's e4m3 number times this is the weight that a drafter sees."""
LARGEST_INT8 = 119
"""The largest int8 code that can be split."""


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """An fp32 weight as fp16 rows that can be split."""

    rows: Tensor
    """``[out, in]`` fp16, at most 1.75 in magnitude."""
    scales: Tensor
    """``[out, 1]`` fp32 powers of two, at least 1: the weight is ``rows · scales``."""
    rounded: int
    """Weights that are not represented exactly."""


def scale_rows(weight: Tensor, name: str) -> ScaledRows:
    """Divide the rows whose largest magnitude exceeds 1.75 by a power of two and round to fp16 (to nearest even).

    ``InvalidInput`` naming ``name`` for NaN and infinity.
    """
    require_finite(weight, name)
    weight = weight.float().contiguous()
    largest = weight.abs().amax(-1, keepdim=True)
    # Divided by a tensor: by a number, CUDA multiplies with the reciprocal, and exactly 1.75 · 2ⁿ could go either way.
    fraction, exponent = torch.frexp(largest / torch.full_like(largest, LARGEST_FP16))  # fraction in [½, 1)
    exponent = torch.where(fraction == 0.5, exponent - 1, exponent).clamp(min=0)  # largest ≤ 1.75 · 2^exponent
    scales = torch.exp2(exponent.double()).float()
    rows = (weight / scales).half()
    return ScaledRows(rows, scales, int((rows.float() * scales != weight).sum()))


def split_fp16(rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """``high`` (``torch.float8_e4m3fn``) and ``low`` (uint8) of fp16 values up to 1.75, each of their shape.

    ``InvalidInput`` naming ``name`` when a magnitude exceeds 1.75 or a value is NaN or infinite.
    """
    require_finite(rows, name)
    if bool((rows.abs() > LARGEST_FP16).any()):
        raise InvalidInput.field(name, f"has magnitudes above {LARGEST_FP16} and cannot be split; scale its rows first")
    high = e4m3.encode(rows.float() / HIGH_SCALE, name)
    return high, (rows.view(torch.int16) & 0xFF).to(torch.uint8)


def merge_fp16(high: Tensor, low: Tensor) -> Tensor:
    """The fp16 values that ``split_fp16`` took apart, bit for bit."""
    word, low_word = high.view(torch.uint8).to(torch.int16), low.to(torch.int16)
    kept = word - ((word ^ (low_word >> 7)) & 1)
    sign = -(word & 0x80) << 8  # -(128 << 8) is the int16 with only its sign bit set
    return (sign | ((kept & 0x7F) << 7) | (low_word & 0x7F)).view(torch.float16)


def split_int8(codes: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """``high`` in -7..7 and ``low`` in -8..7 of int8 codes in -119..119: ``codes == 16 · high + low``.

    ``InvalidInput`` naming ``name`` when a code is beyond ±119.
    """
    if bool((codes.to(torch.int16).abs() > LARGEST_INT8).any()):
        raise InvalidInput.field(name, f"has codes beyond ±{LARGEST_INT8} and cannot be split; quantise it to those")
    high = (codes + 8) >> 4
    return high, codes - (high << 4)


def merge_int8(high: Tensor, low: Tensor) -> Tensor:
    """The int8 codes that ``split_int8`` took apart."""
    return (high << 4) + low
