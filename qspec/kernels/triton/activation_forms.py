"""What linear layers read: 16-bit numbers, or quantised ones with a scale per token, made inside kernels.

Whole numbers of int8 come in two forms: as bytes for 8-bit matrix instructions, and in fp16, exactly, for kernels that
multiply 4-bit codes with 16-bit instructions (``group_linear``).
"""

from __future__ import annotations

from enum import IntEnum

import triton
import triton.language as tl

from qspec.kernels.triton.planes import INTERPRETED


class Form(IntEnum):
    """What a linear layer reads."""

    HALF = 0
    """fp16, in the order of ``input_order``."""
    E4M3 = 1
    """e4m3 with a scale per token, in the usual order."""
    INT8 = 2
    """int8 with a scale per token, in the usual order."""
    INT8_AS_HALF = 3
    """The same whole numbers in fp16, in the order of ``input_order``."""


_E4M3, _INT8, _INT8_AS_HALF = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def to_e4m3(y):
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
def quantise(y, largest, mask, FORM: tl.constexpr):
    """A part of a row, whose largest magnitude is ``largest``, in a ``FORM`` with scales, and the row's scale."""
    most: tl.constexpr = 448.0 if FORM == _E4M3 else 127.0
    scale = largest / most
    divisor = tl.where(scale > 0.0, scale, 1.0) + tl.zeros_like(y)
    codes = tl.clamp(tl.math.div_rn(tl.where(mask, y, divisor), divisor), -most, most)  # zeros' division would be slow
    if FORM == _E4M3:
        held = to_e4m3(codes)
    else:
        whole = (codes + 12582912.0) - 12582912.0  # to the nearest, ties to even
        if FORM == _INT8:
            held = whole.to(tl.int8)
        else:
            held = whole.to(tl.float16)
    return held, scale
