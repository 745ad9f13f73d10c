"""Integer weights as fp16 numbers, inside kernels; every code of 8 bits is one exactly.

Unsigned codes are put into the low bits of an fp16 number whose own are zero: 1024 and more, of which 1024 and what
made the code unsigned are taken off again. Codes of 4 bits come two to a byte (``qspec.quant.nibbles``), the
even-numbered input in the low nibble, so that one word of bytes gives two tensors: even inputs and odd ones. The upper
nibble is left where it is, 16 times too large, and divided by 16 in the subtraction.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qspec.kernels.triton.planes import INTERPRETED

# $0, $1: two pairs of fp16 out; $2: four int8 codes. 1152 = 1024 + 128.
_WIDEN_INT8 = tl.constexpr("""
{
.reg .b32 u, a, b, c;
xor.b32 u, $2, 0x80808080;
mov.u32 c, 0x64646464;
prmt.b32 a, u, c, 0x4140;
prmt.b32 b, u, c, 0x4342;
mov.u32 c, 0x64806480;
sub.f16x2 $0, a, c;
sub.f16x2 $1, b, c;
}
""")

# $0, $1: even inputs of four bytes; $2, $3: odd ones; $4: four bytes. 0x6408 is 1032, 0xd480 is -72, 0x2c00 is 1/16.
_WIDEN_NIBBLES = tl.constexpr("""
{
.reg .b32 a, b, l, h, c, d;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
mov.u32 c, 0x64086408;
lop3.b32 l, a, 0x000f000f, c, 0x6a;
sub.f16x2 $0, l, c;
lop3.b32 l, b, 0x000f000f, c, 0x6a;
sub.f16x2 $1, l, c;
mov.u32 c, 0x2c002c00;
mov.u32 d, 0xd480d480;
lop3.b32 h, a, 0x00f000f0, 0x64806480, 0x6a;
fma.rn.f16x2 $2, h, c, d;
lop3.b32 h, b, 0x00f000f0, 0x64806480, 0x6a;
fma.rn.f16x2 $3, h, c, d;
}
""")

# $4: four bytes of the high nibbles, $5: of the low ones; a code is 16 · high + low. 0x6488 is 1024 + 136.
_MERGE_NIBBLES = tl.constexpr("""
{
.reg .b32 s, e, o, c, a, f;
mov.u32 f, 0x64646464;
mov.u32 c, 0x64886488;
shl.b32 s, $4, 4;
lop3.b32 e, s, $5, 0xf0f0f0f0, 0xe4;
xor.b32 e, e, 0x88888888;
shr.u32 s, $5, 4;
lop3.b32 o, $4, s, 0xf0f0f0f0, 0xe4;
xor.b32 o, o, 0x88888888;
prmt.b32 a, e, f, 0x4140;
sub.f16x2 $0, a, c;
prmt.b32 a, e, f, 0x4342;
sub.f16x2 $1, a, c;
prmt.b32 a, o, f, 0x4140;
sub.f16x2 $2, a, c;
prmt.b32 a, o, f, 0x4342;
sub.f16x2 $3, a, c;
}
""")


@triton.jit
def widen_int8(codes):
    """int8 codes as fp16."""
    if INTERPRETED:
        return codes.to(tl.int8, bitcast=True).to(tl.float16)
    return tl.inline_asm_elementwise(_WIDEN_INT8, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)


@triton.jit
def widen_nibbles(packed):
    """Bytes of two 4-bit two's complement codes: fp16, the even-numbered ones and the odd."""
    if INTERPRETED:
        word = packed.to(tl.int16)
        return (((word & 15) ^ 8) - 8).to(tl.float16), ((word >> 4) ^ 8).to(tl.float16) - 8.0
    return tl.inline_asm_elementwise(
        _WIDEN_NIBBLES, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)


@triton.jit
def merge_nibbles(high, low):
    """8-bit codes of two planes of nibbles, ``16 · high + low``: fp16, the even-numbered ones and the odd."""
    if INTERPRETED:
        first, second = widen_nibbles(high)
        third, fourth = widen_nibbles(low)
        return first * 16.0 + third, second * 16.0 + fourth
    return tl.inline_asm_elementwise(
        _MERGE_NIBBLES, "=r,=r,=r,=r,r,r", [high, low], dtype=(tl.float16, tl.float16), is_pure=True, pack=4)
