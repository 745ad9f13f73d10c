"""Rounds that are asked for before the one before is answered: real engines behind gRPC, and the same texts."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest

from qspec.interfaces import DraftBatch, DraftItem, Sampling, SlotOutcome, Verification, VerifyBatch
from qspec.overlap import AwaitingVerifier, HandingDrafter
from qspec.rpc.remote_drafter import RemoteDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from tests.contract.agreeing import ROUNDS, begin
from tests.contract.sequences import Sequence, decode, only, verify_batch
from tests.contract.sources import EPOCH, MAX_DRAFT_LENGTH, Workers
from tests.contract.test_worker_contract import SAMPLINGS


@pytest.fixture
def workers(agreeing: Workers) -> Workers:
    return agreeing


def ahead(verification: Verification, after: int, most: int) -> Verification:
    """Of a length that nobody knows yet."""
    return replace(verification, committed_len=1, pending_token=0, awaited_drafts=most, after_round=after)


def item_ahead(item: DraftItem, after: int) -> DraftItem:
    return replace(item, committed_len=1, pending_token=0, after_round=after)


def decode_ahead(workers: Workers, sequence: Sequence, rounds: int, length: int) -> list[int]:
    """Each round is asked for while the one before is on its way."""
    verifier, drafter = workers.verifier, workers.drafter
    assert isinstance(verifier, AwaitingVerifier) and isinstance(drafter, HandingDrafter)
    assert verifier.describe().asked_ahead
    asked = []
    after, text = 0, list[int]()
    for number in itertools.islice(ROUNDS, rounds):
        verification, item = sequence.verification(), sequence.draft_item(max(length, 1))
        verification = ahead(verification, after, length) if after else replace(verification, awaited_drafts=length)
        item = item_ahead(item, after) if after else item
        drafting = drafter.begin_draft(DraftBatch(epoch=EPOCH, round=number, items=(item,))) if length else None
        asked.append((drafting, verifier.begin_verify(verify_batch(number, verification))))
        after = number
    for drafting, verifying in asked:
        drafts = only(drafting.result().results).draft_tokens if drafting is not None else ()
        result = only(verifying.result().results)
        assert (result.outcome, result.drafted, result.accepted) == (SlotOutcome.OK, length, len(drafts))
        text += result.token_ids
    return text


@pytest.mark.parametrize("length", [0, 1, MAX_DRAFT_LENGTH])
@pytest.mark.parametrize("sampling", [*SAMPLINGS.values(), Sampling(temperature=0.9, seed=3)],
                         ids=[*SAMPLINGS, "rejection"])
def test_text_is_that_of_asking_in_turn(workers: Workers, sampling: Sampling, length: int) -> None:
    known = decode(workers, begin(workers, 0, sampling), 5, length, first_round=2)
    assert decode_ahead(workers, begin(workers, 1, sampling), 5, length) == known


@pytest.mark.parametrize("left", [0, 1, 2, 3, MAX_DRAFT_LENGTH + 1])
def test_a_text_ends_where_it_is_told_to(workers: Workers, left: int) -> None:
    """With room for so many tokens behind the first round; drafts and verification are asked for as if there was more.
    """
    verifier, drafter = workers.verifier, workers.drafter
    assert isinstance(verifier, AwaitingVerifier) and isinstance(drafter, HandingDrafter)
    known = decode(workers, begin(workers, 1), 1 + left, 0, first_round=2)
    sequence = begin(workers)
    first, second = next(ROUNDS), next(ROUNDS)
    end = len(sequence.tokens) + 1 + left
    verifying = verifier.begin_verify(verify_batch(first, sequence.verification()))
    drafting = drafter.begin_draft(DraftBatch(epoch=EPOCH, round=second, items=(
        replace(item_ahead(sequence.draft_item(MAX_DRAFT_LENGTH), first), end_len=end),)))
    following = verifier.begin_verify(verify_batch(
        second, replace(ahead(sequence.verification(), first, MAX_DRAFT_LENGTH), end_len=end)))
    text = list(only(verifying.result().results).token_ids)
    drafts = drafting.result().results[0].draft_tokens
    result = only(following.result().results)
    assert (result.outcome, len(drafts)) == (SlotOutcome.OK, max(left - 1, 0))
    assert (result.drafted, result.accepted) == (len(drafts), len(drafts))
    assert [*text, *result.token_ids] == known


def test_a_verifier_tells_how_long_it_did_nothing(workers: Workers) -> None:
    sequence = begin(workers)
    time.sleep(0.05)
    idle = workers.verifier.verify(verify_batch(next(ROUNDS), sequence.verification())).idle_ns
    assert 0.05e9 <= idle < 10e9


def test_what_was_not_decided_is_left_undecided(workers: Workers) -> None:
    sequence = begin(workers)
    number = next(ROUNDS)
    first = only(workers.verifier.verify(verify_batch(number, sequence.verification())).results)
    result = only(workers.verifier.verify(verify_batch(next(ROUNDS), ahead(sequence.verification(), 99, 0))).results)
    assert (result.outcome, result.token_ids, result.cached_len) == (SlotOutcome.OK, (), len(sequence.tokens))
    sequence.tokens += first.token_ids
    assert decode(workers, sequence, 1, 0, first_round=next(ROUNDS)), "and goes on when its length is told"


def test_another_tenancy_does_not_go_on(workers: Workers) -> None:
    """Its drafts are stale, and so is the question: the slot is somebody else's."""
    sequence = begin(workers)
    number = next(ROUNDS)
    workers.verifier.verify(verify_batch(number, sequence.verification()))
    begin(workers)
    workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=next(ROUNDS)))  # rounds go on
    drafts = workers.drafter.draft(DraftBatch(
        epoch=EPOCH, round=number + 1, items=(item_ahead(sequence.draft_item(2), number),)))
    assert [(result.outcome, result.draft_tokens) for result in drafts.results] == [(SlotOutcome.STALE, ())]
    answer = workers.verifier.verify(verify_batch(next(ROUNDS), ahead(sequence.verification(), number, 0)))
    assert only(answer.results).outcome is SlotOutcome.STALE


def test_a_lost_stream_keeps_nobody_waiting(workers: Workers) -> None:
    """Whoever waits for decisions or drafts that nobody will make is told so by the end of the call."""
    remote, drafter = workers.verifier, workers.drafter
    assert isinstance(remote, RemoteVerifier) and isinstance(drafter, RemoteDrafter)
    sequence = begin(workers)
    pending = drafter.begin_draft(DraftBatch(
        epoch=EPOCH, round=10**9, items=(item_ahead(sequence.draft_item(2), 10**9 - 1),)))
    time.sleep(0.2)
    pending.cancel()
    begun = time.monotonic()
    assert decode(workers, sequence, 1, 2, first_round=next(ROUNDS))
    assert time.monotonic() - begun < 5


def test_what_was_asked_after_a_lost_answer_is_not_begun(workers: Workers) -> None:
    """The call ends while its first batch waits for drafts: the second one, which nobody wants, is never computed."""
    remote = workers.verifier
    assert isinstance(remote, RemoteVerifier)
    sequence = begin(workers)
    number = next(ROUNDS)
    first = remote.begin_verify(verify_batch(number, replace(sequence.verification(), awaited_drafts=2)))
    remote.begin_verify(VerifyBatch(
        epoch=EPOCH, round=next(ROUNDS), verifications=(ahead(sequence.verification(), number, 0),)))
    time.sleep(0.2)
    first.cancel()
    again = only(remote.verify(verify_batch(number, sequence.verification())).results)
    assert (again.outcome, len(again.token_ids)) == (SlotOutcome.OK, 1), "the answer that was stored"
