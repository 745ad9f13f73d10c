"""What every drafter and every verifier must do, wherever they run."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import ContractViolation, EpochMismatch
from qspec.grammar import Grammars
from qspec.grammar_matcher import GrammarMatcher
from qspec.interfaces import AcceptanceRule, DraftBatch, EarlyStop, Sampling, SlotOutcome, TokenLogprobs, VerifyBatch
from tests.contract.sequences import Sequence, decode, draft, only, verify_batch
from tests.contract.sources import BLOCK_SIZE, EPOCH, MAX_BATCH_ROWS, MAX_DRAFT_LENGTH, MAX_SLOTS, NUM_BLOCKS, Workers

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SEEDED = Sampling(temperature=0.8, seed=11, rule=AcceptanceRule.COUPLED)
SAMPLINGS = {
    "greedy": Sampling(),
    "seeded": SEEDED,
    "penalised": replace(SEEDED, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
    "greedy, biased": Sampling(logit_bias=((5, 3.0), (9, -2.0)), min_tokens=4, ending_token_ids=(1, 2)),
    "filtered": replace(SEEDED, top_k=50, top_p=0.99, min_p=0.001, typical_p=0.95),
}


def started(workers: Workers, slot: int = 0, lease: int = 1, sampling: Sampling = Sampling()) -> Sequence:
    """A prefilled sequence."""
    sequence = Sequence(slot, lease, list(PROMPT), sampling)
    result = only(workers.verifier.verify(sequence.prefill_batch(1)).results)
    assert (result.outcome, result.cached_len) == (SlotOutcome.OK, len(PROMPT) - 1)
    return sequence


def test_description_is_complete(workers: Workers) -> None:
    about = workers.verifier.describe()
    assert about.epoch == EPOCH
    assert (about.max_slots, about.num_blocks, about.block_size) == (MAX_SLOTS, NUM_BLOCKS, BLOCK_SIZE)
    assert (about.max_draft_length, about.max_batch_rows) == (MAX_DRAFT_LENGTH, MAX_BATCH_ROWS)
    assert about.vocab_size > max(PROMPT)
    assert about.arena.regions
    assert workers.drafter.attach(about).epoch == EPOCH


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_text_does_not_depend_on_the_draft_length(workers: Workers, sampling: Sampling) -> None:
    plain = decode(workers, started(workers, 0, 1, sampling), rounds=10, draft_length=0, first_round=2)
    for slot, draft_length in ((1, 1), (2, MAX_DRAFT_LENGTH)):
        text = decode(workers, started(workers, slot, 1, sampling), 4, draft_length, first_round=20)
        assert len(text) >= 4
        length = min(len(text), len(plain))
        assert text[:length] == plain[:length]


def test_admission_prefill_and_verification_in_one_batch(workers: Workers) -> None:
    reference = decode(workers, started(workers), rounds=1, draft_length=0, first_round=2)
    sequence = Sequence(1, 1, list(PROMPT))
    batch = replace(sequence.prefill_batch(3), verifications=(sequence.verification(),))
    result = only(workers.verifier.verify(batch).results)
    assert (result.outcome, result.accepted, list(result.token_ids)) == (SlotOutcome.OK, 0, reference)
    assert result.cached_len == len(PROMPT)
    assert result.reserved_len >= len(PROMPT)


def test_chunked_prefill_equals_one_chunk(workers: Workers) -> None:
    reference = decode(workers, started(workers), rounds=3, draft_length=2, first_round=2)
    sequence = Sequence(1, 1, list(PROMPT))
    workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=10, admissions=(sequence.admission(),)))
    for number, (start, end) in enumerate([(0, 1), (1, 4), (4, 6), (6, 7)], 11):
        batch = VerifyBatch(epoch=EPOCH, round=number, prefill_chunks=(sequence.chunk(start, end),))
        assert only(workers.verifier.verify(batch).results).cached_len == end
    assert decode(workers, sequence, rounds=3, draft_length=2, first_round=20) == reference


def test_entries_are_found_again_by_their_tokens(workers: Workers) -> None:
    assert workers.verifier.describe().prefix_cache
    first = started(workers)
    reference = decode(workers, first, rounds=3, draft_length=2, first_round=2)
    again, salted = Sequence(1, 1, list(PROMPT)), Sequence(2, 1, list(PROMPT))
    tokens = tuple(PROMPT[:-1])
    for sequence, salt, found in ((again, "", BLOCK_SIZE), (salted, "another", 0)):
        admission = replace(sequence.admission(), token_ids=tokens, cache_salt=salt)
        answer = workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=10, admissions=(admission,)))
        assert (only(answer.results).cached_len, only(answer.results).reused_len) == (found, found)
        answer = workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=11, prefill_chunks=(sequence.chunk(),)))
        assert (answer.prefill_rows, only(answer.results).reused_len) == (len(tokens) - found, found)
        assert decode(workers, sequence, rounds=3, draft_length=2, first_round=12) == reference
    told = replace(Sequence(3, 1, list(PROMPT), Sampling(prompt_logprobs=0)).admission(), token_ids=tokens)
    with pytest.raises(ContractViolation):
        workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=20, admissions=(told,)))


def test_chunk_beyond_the_cached_tokens_is_stale(workers: Workers) -> None:
    sequence = Sequence(0, 1, list(PROMPT))
    batch = VerifyBatch(
        epoch=EPOCH, round=1, admissions=(sequence.admission(),), prefill_chunks=(sequence.chunk(2, 4),)
    )
    result = only(workers.verifier.verify(batch).results)
    assert (result.outcome, result.cached_len) == (SlotOutcome.STALE, 0)


def test_ragged_drafts_in_one_batch(workers: Workers) -> None:
    lengths = [0, 1, MAX_DRAFT_LENGTH]
    alone = [decode(workers, started(workers, slot, 1), 1, k, first_round=2) for slot, k in enumerate(lengths)]
    sequences = [started(workers, slot, 2) for slot in range(3)]
    drafts = [(), *draft(workers, 5, *(s.draft_item(k) for s, k in zip(sequences[1:], lengths[1:], strict=True)))]
    assert [len(tokens) for tokens in drafts] == lengths
    parts = [sequence.verification(tokens) for sequence, tokens in zip(sequences, drafts, strict=True)]
    results = {r.slot: r for r in workers.verifier.verify(verify_batch(5, *parts)).results}
    assert [list(results[slot].token_ids) for slot in range(3)] == alone


def test_wrong_drafts_are_not_accepted(workers: Workers) -> None:
    plain = decode(workers, started(workers), rounds=1, draft_length=0, first_round=2)
    sequence = started(workers, slot=1)
    vocab_size = workers.verifier.describe().vocab_size
    wrong = ((plain[0] + 1) % vocab_size, 0)
    result = only(workers.verifier.verify(verify_batch(3, sequence.verification(wrong))).results)
    assert (result.accepted, list(result.token_ids), result.cached_len) == (0, plain, len(PROMPT))


def test_stale_by_lease(workers: Workers) -> None:
    sequence = started(workers)
    other = replace(sequence, lease=2)
    result = only(workers.verifier.verify(verify_batch(2, other.verification())).results)
    assert (result.slot, result.lease, result.outcome, result.token_ids) == (0, 2, SlotOutcome.STALE, ())
    answer = workers.drafter.draft(DraftBatch(epoch=EPOCH, round=2, items=(other.draft_item(2),)))
    assert [(r.lease, r.outcome, r.draft_tokens) for r in answer.results] == [(2, SlotOutcome.STALE, ())]
    assert decode(workers, sequence, rounds=1, draft_length=1, first_round=3)


def test_stale_by_committed_length(workers: Workers) -> None:
    sequence = started(workers)
    other = replace(sequence, tokens=[*PROMPT, 7])
    result = only(workers.verifier.verify(verify_batch(2, other.verification())).results)
    assert (result.outcome, result.token_ids, result.cached_len) == (SlotOutcome.STALE, (), len(PROMPT) - 1)
    answer = workers.drafter.draft(DraftBatch(epoch=EPOCH, round=2, items=(other.draft_item(2),)))
    assert [(r.outcome, r.draft_tokens) for r in answer.results] == [(SlotOutcome.STALE, ())]


def test_no_blocks_and_room_after_a_release(workers: Workers) -> None:
    big = Sequence(0, 1, [5] * (NUM_BLOCKS * BLOCK_SIZE - BLOCK_SIZE + 1))
    answer = workers.verifier.verify(big.prefill_batch(1))
    assert only(answer.results).reserved_len == NUM_BLOCKS * BLOCK_SIZE - BLOCK_SIZE
    assert answer.free_blocks == 1
    sequence = Sequence(1, 1, list(PROMPT))
    result = only(workers.verifier.verify(sequence.prefill_batch(2)).results)
    assert (result.outcome, result.cached_len, result.token_ids) == (SlotOutcome.NO_BLOCKS, 0, ())
    answer = workers.verifier.verify(VerifyBatch(
        epoch=EPOCH, round=3, releases=(big.release(),), prefill_chunks=(sequence.chunk(),)
    ))
    assert only(answer.results).outcome is SlotOutcome.OK
    assert answer.free_blocks == NUM_BLOCKS - 2
    assert decode(workers, sequence, rounds=1, draft_length=1, first_round=4)


def test_repeated_verification_gets_the_stored_answer(workers: Workers) -> None:
    sequence = started(workers, sampling=SEEDED)
    (drafts,) = draft(workers, 2, sequence.draft_item(3))
    first = workers.verifier.verify(verify_batch(2, sequence.verification(drafts)))
    again = workers.verifier.verify(verify_batch(2, sequence.verification(drafts)))
    assert again.results == first.results
    assert again.free_blocks == first.free_blocks
    sequence.tokens += first.results[0].token_ids
    assert decode(workers, sequence, rounds=1, draft_length=2, first_round=3)


def test_repeated_first_batch_gets_the_stored_answer(workers: Workers) -> None:
    sequence = Sequence(0, 1, list(PROMPT))
    batch = replace(sequence.prefill_batch(1), verifications=(sequence.verification(),))
    first, again = workers.verifier.verify(batch), workers.verifier.verify(batch)
    assert again.results == first.results
    sequence.tokens += first.results[0].token_ids
    assert decode(workers, sequence, rounds=1, draft_length=2, first_round=2)


def test_wrong_epoch(workers: Workers) -> None:
    sequence = started(workers)
    with pytest.raises(EpochMismatch):
        workers.verifier.verify(replace(verify_batch(2, sequence.verification()), epoch=EPOCH + 1))
    with pytest.raises(EpochMismatch):
        workers.drafter.draft(DraftBatch(epoch=EPOCH + 1, round=2, items=(sequence.draft_item(1),)))
    assert decode(workers, sequence, rounds=1, draft_length=1, first_round=3)


def test_release_and_reuse_of_a_slot(workers: Workers) -> None:
    free = workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=1)).free_blocks
    first = started(workers)
    text = decode(workers, first, rounds=2, draft_length=2, first_round=2)
    answer = workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=4, releases=(first.release(),)))
    assert (answer.results, answer.free_blocks) == ((), free)
    assert only(workers.verifier.verify(verify_batch(5, first.verification())).results).outcome is SlotOutcome.STALE
    stale = only(workers.verifier.verify(Sequence(0, 1, list(PROMPT)).prefill_batch(6)).results)
    assert stale.outcome is SlotOutcome.STALE  # a lease is never used twice
    second = started(workers, lease=2)
    workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=7, releases=(first.release(),)))  # too late, no effect
    assert decode(workers, second, rounds=2, draft_length=2, first_round=8) == text


def test_contract_violations_are_told_and_survived(workers: Workers) -> None:
    sequence = started(workers)
    vocab_size = workers.verifier.describe().vocab_size
    biased = Sequence(1, 1, list(PROMPT), Sampling(logit_bias=((vocab_size, 1.0),)))
    unending = Sequence(1, 1, list(PROMPT), Sampling(min_tokens=1, ending_token_ids=(vocab_size,)))
    for bad in (
        verify_batch(2, replace(sequence.verification(), slot=MAX_SLOTS)),
        verify_batch(2, sequence.verification((1,) * (MAX_DRAFT_LENGTH + 1))),
        verify_batch(2, replace(sequence.verification(), pending_token=vocab_size)),
        VerifyBatch(epoch=EPOCH, round=2, admissions=(biased.admission(),)),
        VerifyBatch(epoch=EPOCH, round=2, admissions=(unending.admission(),)),
    ):
        with pytest.raises(ContractViolation):
            workers.verifier.verify(bad)
    assert decode(workers, sequence, rounds=1, draft_length=1, first_round=3)


def test_a_constrained_sequence_is_left_undecided_until_its_constraint_is_there(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, ready = Grammars.matcher, threading.Event()

    def slow(grammars: Grammars, constraint: Constraint) -> GrammarMatcher:
        ready.wait(20)
        return compiled(grammars, constraint)

    monkeypatch.setattr(Grammars, "matcher", slow)
    sequence = Sequence(0, 1, list(PROMPT))
    admission = replace(sequence.admission(), prompt_len=len(PROMPT), constraint=Constraint(
        ConstraintKind.REGEX, "[a-z]{4}"))
    batch = replace(sequence.prefill_batch(1), admissions=(admission,), verifications=(sequence.verification(),))
    for number in (1, 2):
        if number == 2:
            batch = verify_batch(2, sequence.verification(draft(workers, 2, sequence.draft_item(3))[0]))
        result = only(workers.verifier.verify(batch).results)
        assert (result.outcome, result.accepted, result.token_ids) == (SlotOutcome.OK, 0, ())
        assert result.cached_len == len(PROMPT) - 1
    other = started(workers, 1)
    assert decode(workers, other, rounds=2, draft_length=2, first_round=3), "nobody else waits"
    ready.set()
    for number in range(5, 500):
        drafts = draft(workers, number, sequence.draft_item(2))[0]
        result = only(workers.verifier.verify(verify_batch(number, sequence.verification(drafts))).results)
        if result.token_ids:
            break
        time.sleep(0.01)
    assert result.token_ids[:-1] == drafts[: result.accepted]
    assert result.cached_len == len(PROMPT) + result.accepted


def test_detached_drafter_refuses_and_attaches_again(workers: Workers) -> None:
    sequence = started(workers)
    workers.drafter.detach(EPOCH)
    with pytest.raises(EpochMismatch):
        workers.drafter.draft(DraftBatch(epoch=EPOCH, round=2, items=(sequence.draft_item(1),)))
    workers.drafter.attach(workers.verifier.describe())
    assert decode(workers, sequence, rounds=1, draft_length=1, first_round=3)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=3, rule=AcceptanceRule.REJECTION)])
def test_a_draft_may_end_early(workers: Workers, sampling: Sampling) -> None:
    """By a rule that never stops, that stops at once, and that stops behind the first token."""
    sequence = started(workers, 0, 1, sampling)
    item = sequence.draft_item(MAX_DRAFT_LENGTH)
    (whole,) = draft(workers, 2, item)
    never = EarlyStop(least_drawn=0.0, least_fed=0.0, intercept=0.0, slope=1.0)
    for number, rule, length, seen in (
        (3, never, MAX_DRAFT_LENGTH, MAX_DRAFT_LENGTH),
        (4, replace(never, least_drawn=1.0, intercept=-9.0), 0, 1),
        (5, replace(never, least_fed=1.0), 1, 1),
    ):
        answer = workers.drafter.draft(
            DraftBatch(epoch=EPOCH, round=number, items=(replace(item, early_stop=rule),)))
        (result,) = answer.results
        assert result.outcome is SlotOutcome.OK
        assert result.draft_tokens == whole[:length]
        assert len(result.confidences) == seen
        assert all(0.0 < confidence <= 1.0 for confidence in result.confidences)
        question = verify_batch(number, sequence.verification(result.draft_tokens))
        verified = only(workers.verifier.verify(question).results)
        assert verified.outcome is SlotOutcome.OK
        sequence.tokens += verified.token_ids
        item, whole = sequence.draft_item(MAX_DRAFT_LENGTH), draft(workers, number, sequence.draft_item(4))[0]


def test_what_comes_too_late_is_left_alone_and_nothing_is_lost(workers: Workers) -> None:
    reference = decode(workers, started(workers, 0, 1, SEEDED), rounds=3, draft_length=2, first_round=2)
    sequence = Sequence(1, 1, list(PROMPT), SEEDED)
    whole = replace(sequence.prefill_batch(10), verifications=(sequence.verification(),))
    late = replace(whole, time_left_s=0.0, releases=(Sequence(0, 1, []).release(),))
    answer = workers.verifier.verify(late)
    result = only(answer.results)
    assert (result.outcome, result.token_ids, result.cached_len, answer.prefill_rows) == (SlotOutcome.LATE, (), 0, 0)
    assert answer.free_blocks == NUM_BLOCKS, "slots and blocks are given back all the same"
    assert only(workers.verifier.verify(late).results) == result
    in_time = only(workers.verifier.verify(replace(whole, time_left_s=60.0, round=11)).results)
    assert (in_time.outcome, list(in_time.token_ids)) == (SlotOutcome.OK, reference[:1])
    assert only(workers.verifier.verify(late).results) == in_time, "what is decided is told, however late"
    sequence.tokens += in_time.token_ids
    (drafts,) = draft(workers, 12, sequence.draft_item(2))
    question = verify_batch(12, sequence.verification(drafts))
    missed = only(workers.verifier.verify(replace(question, time_left_s=0.0)).results)
    assert (missed.outcome, missed.token_ids, missed.cached_len) == (SlotOutcome.LATE, (), len(PROMPT))
    sequence.tokens += only(workers.verifier.verify(question).results).token_ids
    decode(workers, sequence, rounds=2, draft_length=2, first_round=13)
    made = sequence.tokens[len(PROMPT) :]
    length = min(len(made), len(reference))
    assert made[:length] == reference[:length]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=3, rule=AcceptanceRule.REJECTION)])
def test_nothing_is_drafted_behind_the_time_that_is_left(workers: Workers, sampling: Sampling) -> None:
    sequence = started(workers, 0, 1, sampling)
    item = sequence.draft_item(MAX_DRAFT_LENGTH)
    for number, time_left_s, length in ((2, 60.0, MAX_DRAFT_LENGTH), (3, 0.0, 0)):
        answer = workers.drafter.draft(
            DraftBatch(epoch=EPOCH, round=number, items=(item,), time_left_s=time_left_s))
        (result,) = answer.results
        assert (result.outcome, len(result.draft_tokens)) == (SlotOutcome.OK, length)
    verified = only(workers.verifier.verify(verify_batch(3, sequence.verification())).results)
    assert len(verified.token_ids) == 1


def told(workers: Workers, slot: int, draft_length: int, sampling: Sampling) -> list[TokenLogprobs]:
    """Log-probabilities of the first tokens of a text, one round after the other; each answer is asked for twice."""
    sequence = started(workers, slot, 1, sampling)
    found: list[TokenLogprobs] = []
    for number in range(slot * 20 + 2, slot * 20 + 8):
        drafts = draft(workers, number, sequence.draft_item(draft_length))[0] if draft_length else ()
        batch = verify_batch(number, sequence.verification(drafts))
        result = only(workers.verifier.verify(batch).results)
        assert only(workers.verifier.verify(batch).results) == result
        assert len(result.logprobs) == len(result.token_ids) > 0
        sequence.tokens += result.token_ids
        found += result.logprobs
    return found


@pytest.mark.parametrize("name", ["greedy", "penalised"])
def test_logprobs_do_not_depend_on_drafts(workers: Workers, name: str) -> None:
    sampling = replace(SAMPLINGS[name], logprobs=3)
    plain = told(workers, 0, 0, sampling)
    assert all(len(each.top_token_ids) == len(each.top_logprobs) == 3 for each in plain)
    assert all(each.logprob <= 0 and list(each.top_logprobs) == sorted(each.top_logprobs)[::-1] for each in plain)
    drafted = told(workers, 1, MAX_DRAFT_LENGTH, sampling)
    assert drafted[: len(plain)] == plain[: len(drafted)]
    assert len({each.logprob for each in plain}) > 1


def test_prompt_logprobs_do_not_depend_on_chunks_and_are_told_again(workers: Workers) -> None:
    sampling = Sampling(prompt_logprobs=2, logprobs=1)
    sequence = Sequence(0, 1, list(PROMPT), sampling)
    whole = VerifyBatch(
        epoch=EPOCH, round=1, admissions=(replace(sequence.admission(), prompt_len=len(PROMPT)),),
        prefill_chunks=(replace(sequence.chunk(), next_token=PROMPT[-1]),), verifications=(sequence.verification(),))
    answer = only(workers.verifier.verify(whole).results)
    assert len(answer.prompt_logprobs) == len(PROMPT) - 1
    assert len(answer.logprobs) == 1
    assert only(workers.verifier.verify(whole).results) == answer
    other = Sequence(1, 1, list(PROMPT), sampling)
    admission = replace(other.admission(), prompt_len=len(PROMPT))
    workers.verifier.verify(VerifyBatch(epoch=EPOCH, round=2, admissions=(admission,)))
    found: list[TokenLogprobs] = []
    for number, (start, end) in enumerate([(0, 1), (1, 4), (4, 7)], 3):
        with pytest.raises(ContractViolation, match="token behind"):
            workers.verifier.verify(
                VerifyBatch(epoch=EPOCH, round=number, prefill_chunks=(other.chunk(start, end),)))
        chunk = replace(other.chunk(start, end), next_token=PROMPT[end])
        batch = VerifyBatch(epoch=EPOCH, round=number, prefill_chunks=(chunk,))
        result = only(workers.verifier.verify(batch).results)
        assert only(workers.verifier.verify(batch).results) == result
        found += result.prompt_logprobs
    assert tuple(found) == answer.prompt_logprobs
    (again,) = workers.verifier.verify(verify_batch(9, other.verification())).results
    assert (again.prompt_logprobs, again.logprobs) == ((), answer.logprobs)
