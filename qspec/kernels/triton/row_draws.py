"""How the rows of a pass draw their tokens: one column of 32-bit numbers a row, at a fixed place on the device.

Kernels read them by number (``tl.constexpr`` below), so that one captured graph serves every temperature and every mix
of requests. Floats are stored as their bits. What a request may ask for beyond this is decided on the host
(``drawn_on_gpu``): the choice is the request's alone, never the batch's, because its text must not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy
import numpy.typing

from qspec.sampling_options import AcceptanceRule, Sampling


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
    position: int = 0
    """Of the row."""
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


def drawn_on_gpu(sampling: Sampling) -> bool:
    """Whether kernels can draw for such a request. The host does for adjusted logits, log-probabilities, typical-p."""
    return not sampling.adjusts_logits and sampling.logprobs is None and sampling.typical_p >= 1.0


def draw_kind(samplings: Sequence[Sampling]) -> DrawKind:
    """The most that any of them needs."""
    return max((_kind(sampling) for sampling in samplings), default=DrawKind.GREEDY)


def _kind(sampling: Sampling) -> DrawKind:
    if sampling.greedy:
        return DrawKind.GREEDY
    filters = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
    return DrawKind.FILTERED if filters or sampling.needs_draft_probs else DrawKind.DRAWN


def write_draw(draws: numpy.typing.NDArray[numpy.int32], column: int, draw: RowDraw, row: int) -> None:
    """Write ``draw`` into the matrix ``[fields, rows]``; ``row``: ``Field.ROW``."""
    sampling = draw.sampling
    floats = numpy.array([sampling.temperature, sampling.top_p, sampling.min_p], dtype=numpy.float32).view(numpy.int32)
    seed = numpy.array([sampling.seed & 0xFFFFFFFFFFFFFFFF], dtype=numpy.uint64).view(numpy.int32)
    draws[:, column] = (
        floats[0], sampling.top_k, floats[1], floats[2], seed[0], seed[1], sampling.choice << 8,
        sampling.rule is AcceptanceRule.REJECTION and not sampling.greedy, draw.drafted, draw.distribution,
        draw.position, row)
