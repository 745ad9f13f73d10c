"""From drafter to verifier without the coordinator in between: a round's drafts, through the arena.

The coordinator asks both workers at once. The verifier then has its question already while drafts are being made, and
goes on some microseconds after the last one, instead of two messages later. Who decides what stays as it is: the
coordinator says whom to draft for and how much, it gets the same drafts in the drafter's answer, and it tells the
verifier when there will be none (``give_up``), because it is the one who knows whether a drafter lives.

The drafter writes the drafts, then the round that they are of, then the bell, and rings; the verifier reads in the
opposite order. A lease belongs to one tenancy for ever, so what is left of an earlier round is not taken for a later
one's, also when whoever counts rounds begins anew. A drafter that was given up may still write: what it leaves are
tokens that nobody has to believe, as drafts never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qspec.engine.batch_state import numbers
from qspec.engine.regions import DRAFT_BELL, DRAFT_COUNTS, DRAFT_HANDED, DRAFT_LEASES, DRAFT_TOKENS
from qspec.engine.round_bell import RoundBell
from qspec.interfaces import DraftResult, Verification
from qspec.memory.attachment import Arena

HANDOVER_TIMEOUT_S = 30.0
"""A drafter is given up long before; then the coordinator is gone, too."""


class DraftHandover:
    """One end of it: ``put`` is the drafter's, ``take`` the verifier's, and ``give_up`` may be called by any thread."""

    def __init__(self, arena: Arena, vocab_size: int, *, watches: bool = False) -> None:
        self._tokens, self._counts = numbers(arena, DRAFT_TOKENS), numbers(arena, DRAFT_COUNTS)
        self._leases = numbers(arena, DRAFT_LEASES)
        self._handed, self._bell = numbers(arena, DRAFT_HANDED), RoundBell(arena, DRAFT_BELL, watches=watches)
        self._vocab_size = vocab_size

    def put(self, round_number: int, results: Iterable[DraftResult]) -> None:
        """Leave a round's drafts."""
        for result in results:
            self._tokens[result.slot, : len(result.draft_tokens)] = result.draft_tokens
            self._counts[result.slot], self._leases[result.slot] = len(result.draft_tokens), result.lease
        self._handed[0] = round_number
        self._bell.ring()

    def take(self, round_number: int, awaited: Iterable[Verification]) -> Mapping[int, tuple[int, ...]]:
        """The drafts of a round by slot, once all are there; none at all when they were given up.

        Of a slot with more drafts than it awaits, or such as are no tokens, there are none.
        """
        awaiting = tuple(v for v in awaited if v.slot < len(self._leases))  # of others the planner says what is wrong

        def there() -> bool:
            return int(self._handed[0]) == round_number and all(
                int(self._leases[v.slot]) == v.lease for v in awaiting)

        if not self._bell.wait(there, round_number, HANDOVER_TIMEOUT_S):
            return {}
        return {v.slot: self._read(v.slot, v.awaited_drafts) for v in awaiting}

    def give_up(self, round_number: int) -> None:
        """There will be no drafts of this round."""
        self._bell.give_up(round_number)

    def _read(self, slot: int, most: int) -> tuple[int, ...]:
        count = int(self._counts[slot])
        tokens = tuple(self._tokens[slot, :count].tolist()) if 0 <= count <= most else ()
        return tokens if all(0 <= token < self._vocab_size for token in tokens) else ()
