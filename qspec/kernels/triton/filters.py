"""Which logits of a row are kept by top-k, top-p and min-p: a bound, found without sorting.

``qspec.filters`` defines the filters. One program a row looks for the largest bound that leaves enough, by count or by
probability, halving the range of float32 numbers twice at each look at the row: sixteen looks whatever the row, where a
sort would move a vocabulary several times. The sums behind it grow with every token that is let in, rounding included,
so the search is exact for them; and they are added in one order, so a row's bound does not depend on its neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.overlap import launch_options, wait_for_inputs

_BLOCK = 8192
_LOWEST = tl.constexpr(-2139095041)
"""The key of minus infinity."""


@triton.jit
def _key(values):
    """int32 numbers in the order of floats."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    """The float of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _passing(scaled, row, width, largest, key, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """How many logits have at least this key, or how much probability (times its normaliser)."""
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        s = tl.load(scaled + row * width + at, mask=at < width, other=float("-inf"))
        weight = tl.exp(s - largest) if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
        total += tl.where((at < width) & (_key(s) >= key), weight, 0.0)
    return tl.sum(total, 0)


@triton.jit
def _search(scaled, row, width, largest, wanted, least, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key that lets ``wanted`` pass; ``least``: a key that does. Three keys are tried at each look."""
    low, high = least.to(tl.int64), _key(largest).to(tl.int64) + 1
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        at1, at2, at3 = low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)
        key1, key2, key3 = at1.to(tl.int32), at2.to(tl.int32), at3.to(tl.int32)
        sum1 = tl.zeros([BLOCK], dtype=tl.float32)
        sum2 = tl.zeros([BLOCK], dtype=tl.float32)
        sum3 = tl.zeros([BLOCK], dtype=tl.float32)
        for first in range(0, width, BLOCK):
            at = first + tl.arange(0, BLOCK)
            s = tl.load(scaled + row * width + at, mask=at < width, other=float("-inf"))
            weight = tl.exp(s - largest) if BY_MASS else tl.full([BLOCK], 1.0, tl.float32)
            weight = tl.where(at < width, weight, 0.0)
            key = _key(s)
            sum1 += tl.where(key >= key1, weight, 0.0)
            sum2 += tl.where(key >= key2, weight, 0.0)
            sum3 += tl.where(key >= key3, weight, 0.0)
        pass1, pass2, pass3 = tl.sum(sum1, 0) >= wanted, tl.sum(sum2, 0) >= wanted, tl.sum(sum3, 0) >= wanted
        low = tl.where(pass3, at3, tl.where(pass2, at2, tl.where(pass1, at1, low)))
        high = tl.where(pass1, tl.where(pass2, tl.where(pass3, high, at3), at2), at1)
    return low.to(tl.int32)


@triton.jit
def _last_tie(scaled, row, width, key, ties, BLOCK: tl.constexpr):
    """The token of the ``ties``-th logit that has this key, in the order of tokens."""
    last, seen = tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        s = tl.load(scaled + row * width + at, mask=at < width, other=float("-inf"))
        tied = tl.where((at < width) & (_key(s) == key), 1.0, 0.0)
        rank = seen + tl.cumsum(tied, 0)
        last = tl.maximum(last, tl.max(tl.where((tied > 0.0) & (rank <= ties), at, 0), 0))
        seen += tl.sum(tied, 0)
    return last


@triton.jit
def kept(s, token, largest, bound, last_tie, min_p):
    """Whether logits are kept, given what ``find_bounds`` found for their row."""
    return ((s > bound) | ((s == bound) & (token <= last_tie))) & (tl.exp(s - largest) >= min_p)


@triton.jit(do_not_specialize=["rows", "stride"])
def _bounds_kernel(
    scaled, block_maxima, draws, bounds, ties, stride, rows, width, blocks,
    TEMPERATURE: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCKS)
    maxima = tl.load(block_maxima + row * blocks + block, mask=block < blocks, other=float("-inf"))
    largest = tl.max(maxima, 0)
    mine = draws + row
    top_k = tl.load(mine + TOP_K * stride)
    top_p = tl.load(mine + TOP_P * stride).to(tl.float32, bitcast=True)
    min_p = tl.load(mine + MIN_P * stride).to(tl.float32, bitcast=True)
    temperature = tl.load(mine + TEMPERATURE * stride).to(tl.float32, bitcast=True)
    key, last = tl.full((), _LOWEST, tl.int32), tl.full((), 0x7FFFFFFF, tl.int32)
    if temperature > 0.0:
        if (top_k > 0) & (top_k < width):
            key = _search(scaled, row, width, largest, top_k.to(tl.float32), key, BY_MASS=False, BLOCK=BLOCK)
        if top_p < 1.0:
            mass = top_p * _passing(scaled, row, width, largest, key, BY_MASS=True, BLOCK=BLOCK)
            key = _search(scaled, row, width, largest, mass, key, BY_MASS=True, BLOCK=BLOCK)
            above = _passing(scaled, row, width, largest, key + 1, BY_MASS=True, BLOCK=BLOCK)
            # of equals only as many as it takes, one at least
            needed = tl.maximum(tl.ceil((mass - above) / tl.exp(_value(key) - largest)), 1.0)
            last = _last_tie(scaled, row, width, key, needed, BLOCK=BLOCK)
    bound = _value(key)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, width, BLOCK):
        at = first + tl.arange(0, BLOCK)
        s = tl.load(scaled + row * width + at, mask=at < width, other=float("-inf"))
        total += tl.where((at < width) & kept(s, at, largest, bound, last, min_p), tl.exp(s - largest), 0.0)
    tl.store(bounds + row, largest)
    tl.store(bounds + rows + row, bound)
    tl.store(bounds + 2 * rows + row, tl.sum(total, 0))
    tl.store(ties + row, last)


def find_bounds(
    scaled: Tensor, block_maxima: Tensor, draws: Tensor, bounds: Tensor, ties: Tensor, fields: dict[str, int]
) -> None:
    """What each row of ``scaled`` ``[M, V]`` (logits over temperature, fp32) keeps.

    ``block_maxima``: ``[M, blocks]``. ``draws``: the matrix of ``row_draws``, whose rows ``fields`` names. Writes
    ``bounds`` ``[3, M]`` (largest logit, bound, sum of ``exp(logit - largest)`` over what is kept) and ``ties`` ``[M]``
    (int32: the last token that is kept of those at the bound).
    """
    rows, width = scaled.shape
    blocks = block_maxima.shape[1]
    _bounds_kernel[(rows,)](
        scaled, block_maxima, draws, bounds, ties, draws.shape[1], rows, width, blocks, **fields,
        BLOCKS=triton.next_power_of_2(blocks), BLOCK=min(_BLOCK, triton.next_power_of_2(width)), num_warps=16,
        **launch_options())
