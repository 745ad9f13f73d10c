"""How the rows of a pass draw their tokens: one column of 32-bit numbers a row, at a fixed place on the device.

Kernels read them by number (``tl.constexpr`` below), so that one captured graph serves every temperature and every mix
of requests. Floats are stored as their bits. What a request may ask for beyond this is decided on the host
(``drawn_on_gpu``): the choice is the request's alone, never the batch's, because its text must not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy
import numpy.typing

from qspec.sampling_options import Sampling

_LARGEST = 2**31 - 1
_SMALLEST = float(numpy.finfo(numpy.float32).tiny)


class Field(IntEnum):
    """Rows of the matrix of draws."""

    TEMPERATURE = 0
    TOP_K = 1
    TOP_P = 2
    MIN_P = 3
    SEED_LOW = 4
    SEED_HIGH = 5
    CHOICE = 6
    """Choice · 256: a noise's tag without its purpose."""
    REJECTS = 7
    """1 under the rejection rule."""
    DRAFTED = 8
    """The drafted token that the row decides on; -1: none."""
    DISTRIBUTION = 9
    """Row of the draft distributions: of that token where it is decided on, the first one of a slot in a draft step."""
    POSITION = 10
    """Of the row itself; its token is for the next one. In a draft step the pass's positions count."""
    ROW = 11
    """Row of the pass."""


class DrawKind(IntEnum):
    """What the rows of a pass need, from the least to the most; a graph is captured for each."""

    GREEDY = 0
    """The largest logit."""
    DRAWN = 1
    """The largest logit plus noise, for some."""
    FILTERED = 2
    """Filters or the rejection rule, for some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDraw:
    """One row's token."""

    sampling: Sampling
    drafted: int = -1
    """Token that it decides on; -1: none."""
    distribution: int = 0
    """``Field.DISTRIBUTION``."""


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """What a row said."""

    stands: bool
    """Whether its drafted token is accepted, if those before it are."""
    token: int
    """What follows where it does not stand, or where nothing was drafted."""


def drawn_on_gpu(sampling: Sampling, *, telling: bool = True) -> bool:
    """Whether kernels can draw for such a request. The host does for adjusted logits, log-probabilities, typical-p.

    ``telling``: whether log-probabilities are this worker's to tell.
    """
    told = telling and sampling.logprobs is not None
    return not sampling.adjusts_logits and not told and sampling.typical_p >= 1.0


def draw_kind(samplings: Sequence[Sampling]) -> DrawKind:
    """The most that any of them needs."""
    return max((_kind(sampling) for sampling in samplings), default=DrawKind.GREEDY)


def _kind(sampling: Sampling) -> DrawKind:
    if sampling.greedy:
        return DrawKind.GREEDY
    filters = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return DrawKind.FILTERED if filters or sampling.needs_draft_probs else DrawKind.DRAWN


@dataclass(frozen=True, slots=True)
class PlacedDraw:
    """A draw and where it belongs."""

    column: int
    """Of the matrix."""
    row: int
    """Of the pass."""
    draw: RowDraw


def write_draws(
    matrix: numpy.typing.NDArray[numpy.int32], placed: Sequence[PlacedDraw], positions: Sequence[int]
) -> None:
    """Write draws into the matrix ``[fields, most rows]``; ``positions``: of the rows of the pass."""
    if not placed:
        return
    columns = [
        (*_constant_fields(draw.sampling), draw.drafted, draw.distribution, positions[each.row], each.row)
        for each in placed
        for draw in (each.draw,)
    ]
    matrix[:, [each.column for each in placed]] = numpy.array(columns, dtype=numpy.int32).T


@lru_cache(maxsize=1024)
def _constant_fields(sampling: Sampling) -> tuple[int, ...]:
    """The first fields, which are the same in every row of a request.

    What 32 bits do not hold becomes what means the same: more tokens than any vocabulary has, and the smallest share
    above 0, for which the most probable token is enough. A ``min_p`` that becomes 0 keeps all tokens, as it did.
    """
    top_p = max(sampling.top_p, _SMALLEST)
    floats = numpy.array([sampling.temperature, top_p, sampling.min_p], dtype=numpy.float32)
    temperature, top_p, min_p = floats.view(numpy.int32).tolist()
    low, high = numpy.array([sampling.seed & (1 << 64) - 1], dtype=numpy.uint64).view(numpy.int32).tolist()
    rejects = int(sampling.needs_draft_probs)
    return temperature, min(sampling.top_k, _LARGEST), top_p, min_p, low, high, sampling.choice << 8, rejects
