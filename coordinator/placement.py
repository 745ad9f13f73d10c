"""Which pair of workers a request goes to: a pure function of what is known when the request's turn has come.

A request goes to a pair that can run it in its next round; where there is none, it waits, and nobody passes it. Among
several, two things count, in tokens of prefill. Where the beginning of its prompt is cached, so much less has to be
computed. And where other sequences run, rounds are longer for everybody: each of them weighs as much as
``NEIGHBOUR_TOKENS`` tokens to compute. So a long common beginning draws requests to one pair until the others idle, and
short ones do not. What is cached is an estimate (``coordinator.placed_prefixes``), and being wrong costs time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qspec.room import Room

NEIGHBOUR_TOKENS = 64
"""Tokens of prefill that a request avoids computing for one more sequence beside it. One KV block of tokens: a rule of
thumb, not a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLoad:
    """What a pair of workers holds, and what it has left."""

    sequences: int
    """Sequences in slots, queued by the loop, or on their way to it."""
    room: Room

    def with_one_more(self, tokens: int, names: Sequence[bytes] = ()) -> PairLoad:
        """After a sequence of so many committed tokens, in blocks with these names, was placed here."""
        return PairLoad(sequences=self.sequences + 1, room=self.room.less(tokens, names))


def choose_pair(
    tokens: int, loads: Sequence[PairLoad | None], cached_tokens: Sequence[int], names: Sequence[bytes] = ()
) -> int | None:
    """Index of the pair for a sequence of so many committed tokens; None where it has to wait.

    Args:
        tokens: committed tokens, at least 1.
        loads: of each pair; None for one that takes nothing at the moment.
        cached_tokens: leading tokens of the sequence that each pair is likely to have cached.
        names: what its full blocks are called: those that running sequences hold need no room.
    """
    candidates = [
        (max(tokens - cached, 0) + NEIGHBOUR_TOKENS * load.sequences, -load.room.free_blocks, index)
        for index, (load, cached) in enumerate(zip(loads, cached_tokens, strict=True))
        if load is not None and load.room.fits(tokens, names)
    ]
    return min(candidates)[2] if candidates else None
