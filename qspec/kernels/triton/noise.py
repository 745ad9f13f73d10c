"""The noise of ``qspec.noise`` on a GPU: the same Philox words for the same seed, choice, position, purpose and token.

Words are equal bit for bit; a Gumbel number is made of them in float64 as there, and differs at most in the last bit,
where two libraries round a logarithm differently. One call of the generator gives the words of four adjacent tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl

_TO_UNIT = tl.constexpr(2.0**-32)


@triton.jit
def _unit(words):
    """Uniform numbers in (0, 1), float64."""
    return (words.to(tl.float64) + 0.5) * _TO_UNIT


@triton.jit
def noise_words(seed_low, seed_high, position, tag, first, COUNT: tl.constexpr):
    """Words of the tokens ``first``, ``first + 1``, … ``[COUNT]`` uint32, ``first`` a multiple of 4.

    ``tag``: purpose + 256 · choice. All int32, taken as bits.
    """
    block = (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    none = tl.zeros_like(block)
    w0, w1, w2, w3 = philox_impl(
        block, none + position.to(tl.uint32, bitcast=True), none + tag.to(tl.uint32, bitcast=True), none,
        none + seed_low.to(tl.uint32, bitcast=True), none + seed_high.to(tl.uint32, bitcast=True))
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def gumbel_noise(seed_low, seed_high, position, tag, first, COUNT: tl.constexpr):
    """Standard Gumbel numbers of those tokens: ``[COUNT]`` float64, finite."""
    return -tl.log(-tl.log(_unit(noise_words(seed_low, seed_high, position, tag, first, COUNT))))


@triton.jit
def first_uniform(seed_low, seed_high, position, tag):
    """The uniform number of token 0, which acceptance is decided by: ``[1]`` float64."""
    words = noise_words(seed_low, seed_high, position, tag, 0, 4)
    return _unit(tl.sum(tl.where(tl.arange(0, 4) == 0, words, tl.zeros_like(words)), 0))
