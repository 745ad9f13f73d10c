"""Drafts that go from the drafter to the verifier through the arena: the same answers as over the coordinator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qspec.interfaces import DraftBatch, EarlyStop, Sampling, SlotOutcome, VerifyBatch, VerifyResult
from qspec.overlap import AwaitingVerifier, HandingDrafter
from qspec.rpc.remote_verifier import RemoteVerifier
from tests.contract.agreeing import LEASES, ROUNDS, begin
from tests.contract.sequences import Sequence, decode, only, verify_batch
from tests.contract.sources import EPOCH, MAX_DRAFT_LENGTH, Workers
from tests.contract.test_worker_contract import PROMPT, SAMPLINGS


@pytest.fixture
def workers(agreeing: Workers) -> Workers:
    return agreeing


def awaiting(number: int, sequence: Sequence, most: int) -> VerifyBatch:
    """Decide on what the drafter makes in this round."""
    return verify_batch(number, replace(sequence.verification(), awaited_drafts=most))


def both(workers: Workers, number: int, sequence: Sequence, most: int, stop: EarlyStop | None = None) -> VerifyResult:
    """One round, both workers asked at once, the verifier first."""
    verifier, drafter = workers.verifier, workers.drafter
    assert isinstance(verifier, AwaitingVerifier) and isinstance(drafter, HandingDrafter)
    assert verifier.describe().awaits_drafts
    pending = verifier.begin_verify(awaiting(number, sequence, most))
    item = replace(sequence.draft_item(most), early_stop=stop)
    drafting = drafter.begin_draft(DraftBatch(epoch=EPOCH, round=number, items=(item,)))
    drafts = only(drafting.result().results)
    answer = pending.result()
    result = only(answer.results)
    assert answer.waited_ns > 0 and result.drafted == len(drafts.draft_tokens)
    assert result.token_ids[:-1] == drafts.draft_tokens[: result.accepted]
    return result


@pytest.mark.parametrize("sampling", [*SAMPLINGS.values(), Sampling(temperature=0.9, seed=3)],
                         ids=[*SAMPLINGS, "rejection"])
def test_text_is_that_of_drafts_that_are_sent(workers: Workers, sampling: Sampling) -> None:
    sent = decode(workers, begin(workers, 0, sampling), 4, MAX_DRAFT_LENGTH, first_round=2)
    sequence = begin(workers, 1, sampling)
    text: list[int] = []
    for _ in range(4):
        result = both(workers, next(ROUNDS), sequence, MAX_DRAFT_LENGTH)
        assert (result.outcome, result.drafted, result.accepted) == (SlotOutcome.OK, MAX_DRAFT_LENGTH, MAX_DRAFT_LENGTH)
        text += result.token_ids
        sequence.tokens += result.token_ids
    assert text == sent


def test_fewer_drafts_than_awaited(workers: Workers) -> None:
    never = EarlyStop(least_drawn=1.0, least_fed=1.0, intercept=-20.0, slope=0.0)
    result = both(workers, next(ROUNDS), begin(workers), MAX_DRAFT_LENGTH, never)
    assert (result.outcome, result.drafted, len(result.token_ids)) == (SlotOutcome.OK, 0, 1)


def test_drafts_that_are_given_up(workers: Workers) -> None:
    verifier = workers.verifier
    assert isinstance(verifier, AwaitingVerifier)
    plain = decode(workers, begin(workers, 0), 1, 0, first_round=2)
    sequence = begin(workers, 1)
    number = next(ROUNDS)
    pending = verifier.begin_verify(awaiting(number, sequence, 3))
    verifier.give_up_drafts(EPOCH, number)
    result = only(pending.result().results)
    assert (result.outcome, result.drafted, list(result.token_ids)) == (SlotOutcome.OK, 0, plain)
    number = next(ROUNDS)
    verifier.give_up_drafts(EPOCH + 1, number)  # of another epoch: nothing happens
    sequence.tokens += result.token_ids
    assert both(workers, number, sequence, 2).drafted == 2


def test_a_repeated_question_gets_the_stored_answer(workers: Workers) -> None:
    sequence = begin(workers)
    number = next(ROUNDS)
    first = both(workers, number, sequence, 2)
    again = verify_batch(number, sequence.verification(first.token_ids[:2]))
    assert only(workers.verifier.verify(again).results) == first


def test_what_is_left_of_an_earlier_tenancy_is_not_taken(workers: Workers) -> None:
    """The round has the same number, as for a coordinator that begins anew; the drafts are another sequence's."""
    number = next(ROUNDS)
    first = both(workers, number, begin(workers), 2)
    other = Sequence(0, next(LEASES), [*PROMPT, 7, 8])
    workers.verifier.verify(other.prefill_batch(1))
    assert both(workers, number, other, 2).token_ids != first.token_ids


def test_whoever_asked_goes_while_drafts_are_awaited(workers: Workers) -> None:
    remote = workers.verifier
    assert isinstance(remote, RemoteVerifier)
    another = RemoteVerifier(remote._peer.rsplit(" ", 1)[1], load_timeout_s=20.0)
    sequence = begin(workers)
    another.begin_verify(awaiting(next(ROUNDS), sequence, 2))
    another.close()
    assert list(decode(workers, begin(workers, 1), 1, 0, first_round=6)), "the engine is free again"
