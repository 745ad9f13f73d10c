"""Fake workers that can be asked without waiting, and share what stands for an arena: drafts and decisions by round."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from qspec.errors import WorkerLost
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    DraftItem,
    DraftResult,
    SlotOutcome,
    Verification,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
    VerifyResult,
)
from qspec.overlap import with_drafts
from tests.fakes import FakeDrafter, FakeVerifier

WAIT_S = 5.0


class Place:
    """What stands for the arena."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.drafts: dict[int, DraftAnswer] = {}
        self.given_up: set[int] = set()
        self.decided: dict[int, dict[tuple[int, int], VerifyResult]] = {}
        """Results by round, slot and lease."""

    def note(self, change: Callable[[], object]) -> None:
        """Change something, and wake who waits."""
        with self.changed:
            change()
            self.changed.notify_all()


class Awaiting(FakeVerifier):
    """Takes awaited drafts from the place; ``lost`` names rounds whose answer is lost, once each."""

    def __init__(self, place: Place, *, asked_ahead: bool = False, max_slots: int = 4, num_blocks: int = 64) -> None:
        super().__init__(max_slots=max_slots, num_blocks=num_blocks)
        self._place, self._threads = place, ThreadPoolExecutor(1)
        self._asked_ahead = asked_ahead
        self._left: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.lost: set[int] = set()
        self.awaited = 0
        self.continued = 0

    def describe(self) -> VerifierDescription:
        return replace(super().describe(), awaits_drafts=True, asked_ahead=self._asked_ahead)

    def begin_verify(self, batch: VerifyBatch) -> Future[VerifyAnswer]:
        return self._threads.submit(self.verify, batch)

    def give_up_drafts(self, epoch: int, round_number: int) -> None:
        self._place.note(lambda: self._place.given_up.add(round_number))

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        if any(part.awaited_drafts for part in batch.verifications):
            self.awaited += 1
            place = self._place
            with place.changed:
                there = place.changed.wait_for(lambda: {batch.round} & (place.drafts.keys() | place.given_up), WAIT_S)
            assert there, "nobody drafts, and nobody says so"
            made = place.drafts.get(batch.round)
            tokens = {} if made is None else {result.slot: result.draft_tokens for result in made.results}
            batch = with_drafts(batch, tokens)
        placed = [self._placed(part) for part in batch.verifications]
        left = [self._result(part.slot, part.lease, SlotOutcome.OK)
                for part, known in zip(batch.verifications, placed, strict=True) if known is None]
        batch = replace(batch, verifications=tuple(known for known in placed if known is not None))
        answer = super().verify(batch)
        asked = {part.slot: part for part in batch.verifications}
        for result in answer.results:
            if result.token_ids:
                length = asked[result.slot].committed_len + len(result.token_ids)
                self._left[result.slot, result.lease] = batch.round, length, result.token_ids[-1]
        self._place.note(lambda: self._place.decided.update(
            {batch.round: {(result.slot, result.lease): result for result in answer.results if result.token_ids}}))
        if batch.round in self.lost:
            self.lost.discard(batch.round)
            raise WorkerLost("the answer was lost")
        return replace(answer, results=(*answer.results, *left), waited_ns=1000)

    def _placed(self, part: Verification) -> Verification | None:
        """With the length and the token that the round before left; None where it left none."""
        if not part.after_round:
            return part
        self.continued += 1
        number, length, token = self._left.get((part.slot, part.lease), (0, 0, 0))
        if number != part.after_round or length >= part.end_len:
            return None
        return replace(
            part, committed_len=length, pending_token=token, after_round=0, end_len=0,
            draft_tokens=part.draft_tokens[: part.end_len - length - 1])


class Handing(FakeDrafter):
    """Leaves its drafts in the place; fails in the rounds that it is told to, before or after making them."""

    def __init__(self, place: Place) -> None:
        super().__init__(wrong_every=3)
        self._place, self._threads = place, ThreadPoolExecutor(1)
        self.fails_before: set[int] = set()
        self.fails_after: set[int] = set()
        self.fails_at_once = False
        self.results = 0

    def begin_draft(self, batch: DraftBatch) -> Future[DraftAnswer]:
        if self.fails_at_once:
            raise WorkerLost("closed")
        return self._threads.submit(self.draft, batch)

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        if batch.round in self.fails_before:
            raise WorkerLost("dead")
        known = replace(batch, items=tuple(item for one in batch.items if (item := self._placed(one)) is not None))
        answer = super().draft(known)
        made = {result.slot: result for result in answer.results}
        answer = replace(answer, results=tuple(
            made.get(item.slot, DraftResult.answering(item, None)) for item in batch.items))
        self._place.note(lambda: self._place.drafts.update({batch.round: answer}))
        self.results += 1
        if batch.round in self.fails_after:
            raise WorkerLost("died with the answer")
        return answer

    def _placed(self, item: DraftItem) -> DraftItem | None:
        if not item.after_round:
            return item
        decided = self._place.decided
        with self._place.changed:
            assert self._place.changed.wait_for(lambda: item.after_round in decided, WAIT_S), "nobody decides"
        result = decided[item.after_round].get((item.slot, item.lease))
        if result is None or result.cached_len + 2 >= item.end_len:
            return None
        return replace(
            item, committed_len=result.cached_len + 1, pending_token=result.token_ids[-1], after_round=0, end_len=0,
            draft_length=min(item.draft_length, item.end_len - result.cached_len - 2))
