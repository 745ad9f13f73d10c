"""Counter-based noise: every random number is a pure function of where it is used.

A draw is addressed by (seed, choice, position, purpose, token id). Nothing has state, so nothing can be reseeded,
consumed in another order, or lost with a process: the same request draws the same noise alone or in a batch, with any
draft length, and after a recovery. Purposes keep draws apart that must be independent; sharing the drafter's noise with
the acceptance test, say, biases the output measurably.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3),
which GPU libraries provide too. Counter words: token id // 4, position, purpose + 256 · choice, 0; token id % 4 selects
the output word; the key is the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10
_FEW_BLOCKS = 16
"""Up to here plain integers are faster than arrays."""

_Word: TypeAlias = Any  # an int, or an array of uint64: the same operators serve both


class Purpose(IntEnum):
    """What a draw decides. Under coupling drafter and verifier share ``COUPLED``; under rejection all are apart."""

    COUPLED = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3
    BONUS = 4


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """Whose noise it is: ``seed`` has 64 bits, ``choice`` (which of several outputs of a request) 24."""

    seed: int
    choice: int = 0


def philox(counter: tuple[_Word, _Word, _Word, _Word], key: int) -> tuple[_Word, _Word, _Word, _Word]:
    """Philox4x32-10 on four 32-bit counter words: integers, or arrays of uint64. ``key`` has 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(key: NoiseKey, position: int, purpose: Purpose, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output words of each block of four token ids: ``[blocks, 4]``."""
    tag = int(purpose) + (key.choice << 8)
    if len(blocks) <= _FEW_BLOCKS:
        return np.array([philox((block, position, tag, 0), key.seed) for block in blocks.tolist()], dtype=np.uint64)
    c1, c2, c3 = (np.full_like(blocks, word) for word in (position, tag, 0))
    return np.stack(philox((blocks, c1, c2, c3), key.seed), axis=1)


def _to_uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def _to_gumbel(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    noise: NDArray[np.float64] = -np.log(-np.log(uniforms))
    return noise


def uniform(key: NoiseKey, position: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) for token ids ``0..count-1``: ``[count]`` float64, multiples of 2⁻³² plus 2⁻³³."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    return _to_uniform(_words(key, position, purpose, blocks).reshape(-1)[:count])


def gumbel(key: NoiseKey, position: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
    """Standard Gumbel numbers for token ids ``0..count-1``: ``[count]`` float64, finite."""
    return _to_gumbel(uniform(key, position, purpose, count))


def gumbel_of(key: NoiseKey, position: int, purpose: Purpose, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same numbers for the given token ids only: ``[len(token_ids)]`` float64."""
    ids = token_ids.astype(np.uint64)
    words = _words(key, position, purpose, ids // np.uint64(4))
    return _to_gumbel(_to_uniform(words[np.arange(len(ids)), token_ids % 4]))
