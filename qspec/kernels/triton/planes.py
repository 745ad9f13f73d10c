"""Weights out of planes, inside kernels and as a kernel of its own.

With ``low`` the low byte of an fp16 word, only its high byte has to be put together (``qspec.quant.planes``): the sign,
a zero and the high plane's magnitude halved, less one where the plane had been rounded up from an odd number, which
shows in an even plane beside a ``low`` with its top bit set. Four weights are done at a time, in eight instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.input_order import arranged

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Triton's interpreter knows no assembly: the same bits come from plain operations there."""

# $0, $1: two pairs of fp16 out; $2: four bytes of the high plane, $3: four of the low one.
# v + c moves the sign from bit 6 to bit 7 of its byte.
_MERGE = tl.constexpr("""
{
.reg .u32 s, v, c, b, r;
shr.u32 s, $2, 1;
and.b32 v, s, 0x7f7f7f7f;
and.b32 c, s, 0x40404040;
shr.u32 b, $3, 7;
lop3.b32 b, b, $2, 0x01010101, 0x20;
add.u32 r, v, c;
sub.u32 r, r, b;
prmt.b32 $0, $3, r, 0x5140;
prmt.b32 $1, $3, r, 0x7362;
}
""")

# $0, $1: two pairs of fp16 out; $2: four bytes of the high plane. Two instructions, since the e4m3 formats that GPUs
# convert have the same numbers; shifting bits into place took eight, which the draft's products waited for.
_WIDEN = tl.constexpr("""
{
.reg .b16 a, b;
mov.b32 {a, b}, $2;
cvt.rn.f16x2.e4m3x2 $0, a;
cvt.rn.f16x2.e4m3x2 $1, b;
}
""")


@triton.jit
def merge_planes(high, low):
    """fp16 weights of both planes (uint8), bit for bit."""
    if INTERPRETED:
        word, below = high.to(tl.int16), low.to(tl.int16)
        upper = ((word & 0x7F) >> 1) - ((below >> 7) & ~word & 1)
        merged = ((word & 0x80) << 8) | (upper << 8) | below
        return merged.to(tl.float16, bitcast=True)
    return tl.inline_asm_elementwise(_MERGE, "=r,=r,r,r", [high, low], dtype=tl.float16, is_pure=True, pack=4)


@triton.jit
def widen_plane(high):
    """The high plane's e4m3 numbers as fp16, exactly; weights are these times 2⁻⁸."""
    if INTERPRETED:
        word = high.to(tl.int16)
        return (((word & 0x80) << 8) | ((word & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return tl.inline_asm_elementwise(_WIDEN, "=r,=r,r", [high], dtype=tl.float16, is_pure=True, pack=4)


@triton.jit
def _merge_kernel(high, low, out, inputs, stride, ARRANGE: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < inputs
    first = tl.load(high + row * stride + at, mask=inside, other=0)
    weights = merge_planes(first, tl.load(low + row * stride + at, mask=inside, other=0))
    tl.store(out + row * inputs + (arranged(at) if ARRANGE else at), weights, mask=inside)


def merge_into(high: Tensor, low: Tensor, out: Tensor, *, rearrange: bool) -> None:
    """Write the fp16 weights of two planes (uint8 ``[N, K]``) to ``out`` ``[N, K]``: the scratch of long prefills.

    The planes' rows may lie apart, those of ``out`` are adjacent.

    With ``rearrange`` a row's inputs come in the order of ``input_order`` (K a multiple of 64), for a product that has
    the bits of ``plane_linear``; without, in their own, for a library's product, which has not.
    """
    (rows, inputs), block = high.shape, 2048
    _merge_kernel[(rows, triton.cdiv(inputs, block))](
        high.view(torch.uint8), low, out, inputs, high.stride(0), ARRANGE=rearrange, BLOCK=block, num_warps=4)
