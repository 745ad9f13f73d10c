"""One sequence of a contract test: what it has committed, and the batch items that speak of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from qspec.interfaces import (
    Admission,
    DraftBatch,
    DraftItem,
    PrefillChunk,
    Release,
    Sampling,
    SlotOutcome,
    Verification,
    VerifyBatch,
    VerifyResult,
)
from tests.contract.sources import EPOCH, Workers


@dataclass(slots=True)
class Sequence:
    """A tenancy of ``slot``; ``tokens`` are the committed ones."""

    slot: int
    lease: int
    tokens: list[int]
    sampling: Sampling = field(default_factory=Sampling)

    def admission(self) -> Admission:
        """Take the slot."""
        return Admission(slot=self.slot, lease=self.lease, sampling=self.sampling)

    def chunk(self, start: int = 0, end: int | None = None) -> PrefillChunk:
        """Prefill ``tokens[start:end]``, up to the pending token where no end is given."""
        end = len(self.tokens) - 1 if end is None else end
        return PrefillChunk(slot=self.slot, lease=self.lease, start=start, token_ids=tuple(self.tokens[start:end]))

    def release(self) -> Release:
        """Give the slot back."""
        return Release(slot=self.slot, lease=self.lease)

    def draft_item(self, draft_length: int) -> DraftItem:
        """Draft behind the committed tokens."""
        return DraftItem(
            slot=self.slot, lease=self.lease, committed_len=len(self.tokens), pending_token=self.tokens[-1],
            draft_length=draft_length, sampling=self.sampling,
        )

    def verification(self, draft_tokens: tuple[int, ...] = ()) -> Verification:
        """Decide on drafts behind the committed tokens."""
        return Verification(
            slot=self.slot, lease=self.lease, committed_len=len(self.tokens), pending_token=self.tokens[-1],
            draft_tokens=draft_tokens,
        )

    def prefill_batch(self, number: int) -> VerifyBatch:
        """Admission and the whole prompt."""
        return VerifyBatch(
            epoch=EPOCH, round=number, admissions=(self.admission(),), prefill_chunks=(self.chunk(),)
        )


def verify_batch(number: int, *verifications: Verification) -> VerifyBatch:
    """A batch of verifications only."""
    return VerifyBatch(epoch=EPOCH, round=number, verifications=verifications)


def draft(workers: Workers, number: int, *items: DraftItem) -> list[tuple[int, ...]]:
    """The drafts for ``items``, all of which must be OK."""
    answer = workers.drafter.draft(DraftBatch(epoch=EPOCH, round=number, items=items))
    assert [result.outcome for result in answer.results] == [SlotOutcome.OK] * len(items)
    return [result.draft_tokens for result in answer.results]


def decode(workers: Workers, sequence: Sequence, rounds: int, draft_length: int, first_round: int) -> list[int]:
    """Decode some rounds with a fixed draft length; the sequence grows by what is returned."""
    new: list[int] = []
    for number in range(first_round, first_round + rounds):
        drafts = draft(workers, number, sequence.draft_item(draft_length))[0] if draft_length else ()
        result = only(workers.verifier.verify(verify_batch(number, sequence.verification(drafts))).results)
        assert result.outcome is SlotOutcome.OK
        assert result.token_ids[:-1] == drafts[: result.accepted]
        new += result.token_ids
        sequence.tokens += result.token_ids
        assert result.cached_len == len(sequence.tokens) - 1
    return new


def only(results: tuple[VerifyResult, ...]) -> VerifyResult:
    """The only result."""
    (result,) = results
    return result
