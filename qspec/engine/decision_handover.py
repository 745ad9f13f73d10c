"""From verifier to drafter without the coordinator in between: where a round's decisions leave its sequences.

The coordinator may ask for a round before it knows what came of the one before. The drafter then has its question
already while the verifier decides, and begins some microseconds after that. It learns the pending token here and the
rest from the batch state, which it reads anyway; that there is a next round, for whom and how long, the coordinator has
said. It is the other half of ``qspec.engine.draft_handover``, and follows the same order: the verifier writes the
tokens, then the round, then the bell, and rings.

A drafter that waits for decisions that will never come is told so by whoever waits for its drafts (``give_up``), and
drafts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qspec.engine.batch_state import numbers
from qspec.engine.regions import DECIDED_BELL, DECIDED_ROUND, SLOT_CACHED, SLOT_LEASES, SLOT_PENDING, SLOT_ROUNDS
from qspec.engine.round_bell import RoundBell
from qspec.interfaces import DraftItem, SlotOutcome, VerifyResult
from qspec.memory.attachment import Arena

DECISION_TIMEOUT_S = 30.0
"""A verifier is given up long before; then the coordinator is gone, too."""


class DecisionHandover:
    """One end of it: ``put`` is the verifier's, ``wait`` and ``placed`` are the drafter's; any thread may ``give_up``.
    """

    def __init__(self, arena: Arena, *, watches: bool = False) -> None:
        self._leases, self._cached = numbers(arena, SLOT_LEASES), numbers(arena, SLOT_CACHED)
        self._pending, self._rounds = numbers(arena, SLOT_PENDING), numbers(arena, SLOT_ROUNDS)
        self._last, self._bell = numbers(arena, DECIDED_ROUND), RoundBell(arena, DECIDED_BELL, watches=watches)

    def put(self, round_number: int, results: Iterable[VerifyResult]) -> None:
        """Say what was decided in a round."""
        for result in results:
            if result.token_ids and result.outcome is SlotOutcome.OK:
                self._pending[result.slot], self._rounds[result.slot] = result.token_ids[-1], round_number
        self._last[0] = round_number
        self._bell.ring()

    def wait(self, round_number: int, asking: int) -> None:
        """Return when this round has been decided, or a later one, or when round ``asking`` was given up."""
        self._bell.wait(lambda: int(self._last[0]) >= round_number, asking, DECISION_TIMEOUT_S)

    def placed(self, item: DraftItem) -> DraftItem | None:
        """The item with committed length and pending token; None where its round did not decide on it, or where its
        text has no room for drafts.
        """
        if not 0 <= item.slot < len(self._leases) or int(self._leases[item.slot]) != item.lease:
            return None
        if int(self._rounds[item.slot]) != item.after_round:
            return None
        length, pending = int(self._cached[item.slot]) + 1, int(self._pending[item.slot])
        drafts = min(item.draft_length, item.end_len - length - 1) if item.end_len else item.draft_length
        if drafts < 1:
            return None
        return replace(
            item, committed_len=length, pending_token=pending, draft_length=drafts, after_round=0, end_len=0)

    def give_up(self, asking: int) -> None:
        """Nobody wants the drafts of round ``asking``."""
        self._bell.give_up(asking)
