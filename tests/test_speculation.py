"""The loop's bookkeeping over the fake workers: who gets a slot, rows and blocks, and what is counted."""

from __future__ import annotations

import pytest

from qspec.constraint import Constraint, ConstraintKind
from qspec.cost_calibration import CostRecorder, calibrate
from qspec.cost_table import CalibratedCosts, CostTable
from qspec.errors import ContractViolation, WorkerLost
from qspec.interfaces import DraftAnswer, DraftBatch, Sampling, VerifyAnswer, VerifyBatch
from qspec.round_batch import BatchRows
from qspec.sequence import FinishReason, Sequence
from qspec.speculation import Commit, SpeculationLoop
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text

VOCAB_SIZE = 97
GREEDY = Sampling()


def attached(
    verifier: FakeVerifier, *, wrong_every: int = 3, drafter: FakeDrafter | None = None, early_stop: bool = False
) -> SpeculationLoop:
    """A loop with these workers."""
    loop = SpeculationLoop(early_stop=early_stop)
    loop.attach_verifier(verifier)
    loop.attach_drafter(drafter or FakeDrafter(wrong_every=wrong_every))
    verifier.batches.clear()
    return loop


def sequence(
    length: int = 3, *, max_tokens: int = 20, draft_length: int | None = 4, eos: int | None = None, start: int = 1
) -> Sequence:
    """A greedy one with a prompt of ``length`` tokens."""
    prompt = [(start + 5 * index) % VOCAB_SIZE for index in range(length)]
    eos_token_ids = frozenset(() if eos is None else (eos,))
    return Sequence("request", prompt, max_tokens, GREEDY, eos_token_ids, draft_length)


def text_of(wanted: Sequence, count: int) -> list[int]:
    """What the toy model writes."""
    return continue_text(wanted.prompt, count, wanted.sampling, VOCAB_SIZE)


def run(loop: SpeculationLoop, *wanted: Sequence) -> list[Commit]:
    """Step until nothing is left; all commits."""
    for one in wanted:
        loop.add(one)
    commits: list[Commit] = []
    for _ in range(2000):
        if not loop.has_work:
            return commits
        commits += loop.step()
    raise AssertionError("the loop does not come to an end")


def rows_of(batch: VerifyBatch) -> int:
    """Rows that a batch asks for."""
    rows = BatchRows.of(batch)
    return rows.entered + rows.decided


def test_commits_are_the_text_in_order() -> None:
    verifier = FakeVerifier()
    wanted = [sequence(start=start) for start in range(6)]  # more than there are slots
    commits = run(attached(verifier), *wanted)
    for one in wanted:
        mine = [commit.token_ids for commit in commits if commit.sequence is one]
        assert [token for tokens in mine for token in tokens] == one.generated == text_of(one, 20)
        assert len(mine) == one.stats.rounds
        assert one.finish is FinishReason.LENGTH
    assert all(max(part.slot for part in batch.verifications) < 4 for batch in verifier.batches if batch.verifications)


def test_a_round_never_exceeds_the_tokens_that_are_left() -> None:
    verifier = FakeVerifier()
    wanted = sequence(max_tokens=4, draft_length=8)
    run(attached(verifier, wrong_every=0), wanted)
    # One token comes with the prompt, then three are left: two drafts and the verifier's own.
    lengths = [len(part.draft_tokens) for batch in verifier.batches for part in batch.verifications]
    assert lengths == [0, 2]
    assert wanted.generated == text_of(wanted, 4)


def test_drafts_are_capped_near_the_last_position() -> None:
    verifier = FakeVerifier(max_model_len=16)
    wanted = sequence(8, max_tokens=100, draft_length=8)
    run(attached(verifier, wrong_every=2), wanted)
    assert len(wanted.tokens) == 16
    for batch in verifier.batches:
        for part in batch.verifications:
            assert part.committed_len + len(part.draft_tokens) <= 16


@pytest.mark.parametrize("position", range(1, 9))
@pytest.mark.parametrize("draft_length", [0, 3, 8])
def test_nothing_follows_the_end_of_sequence(position: int, draft_length: int) -> None:
    text = text_of(sequence(), 20)
    end = text.index(text[position])
    wanted = sequence(draft_length=draft_length, eos=text[position])
    commits = run(attached(FakeVerifier(), wrong_every=0), wanted)
    assert wanted.generated == text[: end + 1]
    assert [token for commit in commits for token in commit.token_ids] == text[: end + 1]
    assert wanted.finish is FinishReason.END_OF_SEQUENCE


def test_a_stop_token_goes_before_an_end_of_sequence() -> None:
    text = text_of(sequence(), 20)
    wanted = sequence(draft_length=4, eos=text[6])
    wanted.stop_token_ids = frozenset({text[6], 96})
    run(attached(FakeVerifier(), wrong_every=0), wanted)
    assert wanted.generated == text[: text.index(text[6]) + 1]
    assert (wanted.finish, wanted.matched_token) == (FinishReason.STOP_TOKEN, text[6])


@pytest.mark.parametrize("max_batch_rows", [4, 5, 7, 9, 64])
@pytest.mark.parametrize("draft_length", [0, 2, 8, None])
def test_no_batch_has_more_rows_than_the_verifier_takes(max_batch_rows: int, draft_length: int | None) -> None:
    verifier = FakeVerifier(max_batch_rows=max_batch_rows)
    loop = attached(verifier)
    wanted = [sequence(length, draft_length=draft_length) for length in (1, 30, 2, 1, 17, 1)]
    loop.add(wanted[0])
    loop.step()
    run(loop, *wanted[1:])
    assert [one.generated for one in wanted] == [text_of(one, 20) for one in wanted]
    assert max(rows_of(batch) for batch in verifier.batches) <= max_batch_rows


def test_a_long_prompt_is_entered_in_chunks_beside_running_texts() -> None:
    verifier = FakeVerifier(max_batch_rows=10)
    loop = attached(verifier)
    running, long = sequence(max_tokens=60, draft_length=3), sequence(50)
    loop.add(running)
    loop.step()
    loop.add(long)
    before = len(running.tokens)
    while not long.generated:
        loop.step()
    assert len(running.tokens) - before >= 8, "the running text waits for nobody"
    chunks = [chunk for batch in verifier.batches for chunk in batch.prefill_chunks if chunk.slot == long.slot]
    assert [token for chunk in chunks for token in chunk.token_ids] == long.prompt[:-1]
    run(loop)
    assert (long.generated, running.generated) == (text_of(long, 20), text_of(running, 60))


def test_a_long_prompt_takes_little_time_of_each_round_of_running_texts() -> None:
    verifier = FakeVerifier(max_batch_rows=64)
    loop = SpeculationLoop(clock=lambda: 0.0, max_prefill_s=0.1)  # from calls that take no time nothing is learnt
    loop.attach_verifier(verifier)
    loop.policy.costs = CostTable(CalibratedCosts(
        verify=((1, 0.03), (9, 0.05)), draft_step=((1, 0.002),), prefill_row=((1, 0.005),)))
    running, long = sequence(40, max_tokens=100, draft_length=3), sequence(200, max_tokens=3)
    verifier.batches.clear()
    loop.add(running)
    loop.step()
    run(loop, long)
    entered = [BatchRows.of(batch).entered for batch in verifier.batches]
    assert entered[0] == 39, "nobody had to wait"
    assert [rows for rows in entered[1:] if rows] == [20] * 9 + [19]
    assert (long.generated, running.generated) == (text_of(long, 3), text_of(running, 100))


def test_calibration_and_use_teach_what_prompts_cost() -> None:
    loop = attached(FakeVerifier())
    assert not loop.policy.costs.prefill_row.known
    run(loop, sequence(30))
    assert loop.policy.costs.prefill_seconds(29) > 0
    calibrate(loop, lambda _what, _share: None)
    assert loop.policy.costs.prefill_seconds(31) > 0


def test_workers_are_told_how_long_anybody_may_still_want_an_answer() -> None:
    now = [100.0]
    verifier = FakeVerifier()
    drafter = FakeDrafter(wrong_every=0)
    loop = SpeculationLoop(clock=lambda: now[0])
    loop.attach_verifier(verifier)
    loop.attach_drafter(drafter)
    verifier.batches.clear()
    wanted = [sequence(start=start, draft_length=2) for start in (1, 2, 3)]
    for one, deadline in zip(wanted, (105.0, 103.0, None), strict=True):
        one.deadline = deadline
    for one in wanted[:2]:
        loop.add(one)
    loop.step()
    now[0] = 101.0
    loop.step()
    assert [batch.time_left_s for batch in verifier.batches] == [5.0, 4.0], "the longest of them counts"
    assert drafter.batches[-1].time_left_s == 4.0
    loop.add(wanted[2])
    loop.step()
    assert verifier.batches[-1].time_left_s is None and drafter.batches[-1].time_left_s == 4.0
    loop.remove(wanted[2])
    loop.step()
    now[0] = 106.0
    before = [list(one.tokens) for one in wanted]
    assert loop.step() == [] and [one.tokens for one in wanted] == before, "nobody wants it, and nothing is computed"
    assert verifier.batches[-1].late and drafter.batches[-1].time_left_s == 0.0
    for one in wanted[:2]:
        one.deadline = None
    run(loop)
    assert [one.generated for one in wanted[:2]] == [text_of(one, 20) for one in wanted[:2]]
    assert loop.drafter_attached


class UnheardVerifier(FakeVerifier):
    """Does its work in ten seconds, and the first answer to each batch is lost on the way."""

    now = 0.0

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        answer = super().verify(batch)
        self.now += 10.0
        if len(self.batches) % 2:
            raise WorkerLost("lost by the test")
        return answer


def test_an_answer_that_was_lost_is_told_again_though_it_is_late_by_then() -> None:
    verifier = UnheardVerifier()
    loop = SpeculationLoop(clock=lambda: verifier.now)
    loop.attach_verifier(verifier)
    wanted = sequence(max_tokens=3, draft_length=0)
    wanted.deadline = verifier.now + 5.0  # behind the first question of the round, before the second
    loop.add(wanted)
    verifier.batches.clear()
    loop.step()
    first, second = verifier.batches
    assert (first.late, second.late) == (False, True)
    assert wanted.generated == text_of(wanted, 1)


def test_the_newest_text_gives_way_when_blocks_run_out() -> None:
    verifier = FakeVerifier(num_blocks=12, max_model_len=48)
    wanted = [sequence(8, max_tokens=20, start=start) for start in range(3)]
    run(attached(verifier), *wanted)
    assert [one.generated for one in wanted] == [text_of(one, 20) for one in wanted]
    assert wanted[0].stats.recomputations == 0
    assert wanted[2].stats.recomputations > 0


def test_the_oldest_waiting_goes_first() -> None:
    verifier = FakeVerifier(max_slots=1)
    wanted = [sequence(start=start, max_tokens=3) for start in range(4)]
    finished = [commit.sequence for commit in run(attached(verifier), *wanted) if commit.sequence.finish]
    assert list(dict.fromkeys(finished)) == wanted


def test_removal_frees_slot_and_blocks_with_the_next_step() -> None:
    verifier = FakeVerifier(max_slots=1)
    loop = attached(verifier)
    removed, waiting = sequence(), sequence(start=2)
    loop.add(removed)
    loop.add(waiting)
    loop.step()
    loop.remove(removed)
    assert (loop.running, loop.waiting) == (0, 1)
    loop.step()
    assert [release.slot for release in verifier.batches[-1].releases] == [removed.slot]
    run(loop)
    assert waiting.generated == text_of(waiting, 20)
    assert removed.finish is None
    never = sequence()
    loop.add(never)
    loop.remove(never)
    assert not loop.has_work


def test_statistics_add_up() -> None:
    wanted = sequence(max_tokens=40, draft_length=4)
    run(attached(FakeVerifier(), wrong_every=5), wanted)
    stats = wanted.stats
    assert stats.drafted == sum(stats.drafted_per_position)
    assert stats.accepted == sum(stats.accepted_per_position)
    assert stats.rounds == sum(stats.rounds_per_draft_length)
    assert stats.drafted == sum(length * rounds for length, rounds in enumerate(stats.rounds_per_draft_length))
    assert stats.accepted + stats.rounds == 40, "every round makes one token more than it accepts"
    assert 0 < stats.accepted < stats.drafted
    assert stats.accepted_per_position == sorted(stats.accepted_per_position, reverse=True)
    assert 0.0 < stats.draft_s < stats.round_s
    assert stats.rounds_without_drafter == 0


class DeadDrafter(FakeDrafter):
    """Answers nothing."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        raise WorkerLost("killed by the test")


def test_a_round_goes_on_without_its_drafter() -> None:
    wanted = sequence()
    loop = attached(FakeVerifier(), drafter=DeadDrafter())
    run(loop, wanted)
    assert wanted.generated == text_of(wanted, 20)
    assert isinstance(loop.drafter_error, WorkerLost)
    assert (wanted.stats.drafted, wanted.stats.rounds_without_drafter) == (0, 19)


def test_nothing_works_without_a_verifier_or_room() -> None:
    loop = SpeculationLoop()
    with pytest.raises(ContractViolation, match="no verifier"):
        loop.add(sequence())
    loop.attach_verifier(FakeVerifier(max_model_len=16))
    with pytest.raises(ContractViolation, match="16 tokens"):
        loop.add(sequence(16))
    with pytest.raises(ValueError, match="prompt"):
        sequence(0)


def test_calibration_fills_the_costs_and_leaves_no_trace() -> None:
    verifier = FakeVerifier()
    loop = attached(verifier)
    shares: list[float | None] = []
    calibrate(loop, lambda _what, share: shares.append(share))
    assert not loop.has_work
    assert shares == sorted(share for share in shares if share is not None)
    assert all(loop.policy.costs.verify_seconds(rows) > 0 for rows in (1, 5, 9, 36))
    assert loop.policy.costs.draft_seconds([1] * 8) > 0
    assert max(len(batch.verifications) for batch in verifier.batches) == 4, "a batch was measured, too"
    assert verifier.verify(VerifyBatch(epoch=verifier.describe().epoch, round=10**6)).free_blocks == 64
    wanted = sequence(draft_length=None)
    run(loop, wanted)
    assert wanted.generated == text_of(wanted, 20)


class CapturingVerifier(FakeVerifier):
    """One whose calls take a time by a clock of their own: rows, positions, and the first of each size 50 ms more."""

    def __init__(self) -> None:
        super().__init__(max_model_len=512, num_blocks=256)
        self.now, self._seen = 0.0, set[tuple[int, int]]()

    def clock(self) -> float:
        return self.now

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        size = rows_of(batch), max((each.committed_len for each in batch.verifications), default=0)
        self.now += 0.01 + 1e-6 * size[1] + (0.05 if size not in self._seen else 0.0)
        self._seen.add(size)
        return super().verify(batch)


def test_a_first_call_that_captures_is_no_cost_of_its_context_or_its_rows() -> None:
    verifier = CapturingVerifier()
    loop = SpeculationLoop(verifier.clock)
    loop.attach_verifier(verifier)
    loop.attach_drafter(FakeDrafter())
    calibrate(loop, lambda _what, _share: None)
    assert loop.policy.costs.verify_context_s <= 2e-6
    assert all(loop.policy.costs.verify_seconds(rows) < 0.02 for rows in (1, 4, 9, 36))


def test_the_policys_drafts_may_end_early_and_a_requests_own_may_not() -> None:
    verifier, drafter = FakeVerifier(), FakeDrafter(wrong_every=4)
    loop = attached(verifier, drafter=drafter, early_stop=True)
    calibrate(loop, lambda _what, _share: None)
    loop.policy.costs = CostTable(CalibratedCosts(verify=((1, 0.03), (9, 0.05)), draft_step=((1, 0.002),)))
    drafter.batches.clear()
    wanted = [sequence(max_tokens=200, draft_length=None), sequence(max_tokens=200, draft_length=3, start=2)]
    run(loop, *wanted)
    assert [one.generated for one in wanted] == [text_of(one, 200) for one in wanted]
    items = [item for batch in drafter.batches for item in batch.items]
    whole = [item for item in items if item.early_stop is None]
    assert {item.draft_length for item in whole} <= {1, 2, 3}
    auto = [item for item in items if item.early_stop is not None]
    assert {item.lease for item in auto}.isdisjoint(item.lease for item in whole)
    assert loop.policy.worth[True].slope > 0.1, "the fake is unsure where it is wrong"
    rounds = enumerate(wanted[1].stats.rounds_per_draft_length)
    assert sum(count for length, count in rounds if length != 3) <= 4, "all but the first and the last ones"


def test_no_confidence_is_asked_for_by_default() -> None:
    drafter = FakeDrafter(wrong_every=4)
    run(attached(FakeVerifier(), drafter=drafter), sequence(max_tokens=60, draft_length=None))
    assert {item.early_stop for batch in drafter.batches for item in batch.items} == {None}


def test_nobody_waits_for_a_constraint_and_nothing_is_drafted_for_it_in_vain() -> None:
    """The first question is asked with drafts, the others are not, and what was decided before does not count."""
    verifier = FakeVerifier(slow_constraints=6)
    loop = attached(verifier)
    constrained, free = sequence(start=2, max_tokens=12), sequence(max_tokens=60)
    constrained.constraint = Constraint(ConstraintKind.REGEX, "a*")
    for one in (free, constrained):
        loop.add(one)
    for _ in range(6):
        assert [commit.sequence for commit in loop.step()] == [free]
    asked = [
        verification.draft_tokens
        for batch in verifier.batches for verification in batch.verifications if verification.lease == constrained.lease
    ]
    assert len(asked) == 6 and sum(map(bool, asked)) <= 1
    assert constrained.stats.rounds == 0 and constrained.stats.drafted == 0
    run(loop)
    assert constrained.generated == text_of(constrained, 12) and free.generated == text_of(free, 60)
    assert constrained.stats.drafted > 0
    assert loop.free_blocks == 64


def test_a_round_that_decides_on_nobody_costs_nothing() -> None:
    verifier = FakeVerifier(slow_constraints=5, delay_s=0.002)
    loop = attached(verifier)
    loop.cost_recorder = recorder = CostRecorder()
    one = sequence(length=1, max_tokens=1, draft_length=0)
    one.constraint = Constraint(ConstraintKind.REGEX, "a*")
    run(loop, one)
    assert len(recorder.verify) == 1 and len(verifier.batches) == 7  # the last one releases


def test_room_is_a_free_slot_and_free_blocks_for_all_that_wait() -> None:
    loop = attached(FakeVerifier(max_slots=2, num_blocks=8, block_size=4))
    whole, half, small = sequence(31, max_tokens=1), sequence(15, max_tokens=8), sequence(3, max_tokens=1)
    assert loop.room.fits(len(whole.tokens))  # nothing else is there: it must fit
    loop.add(half)
    assert loop.room.fits(len(small.tokens)) and not loop.room.fits(len(whole.tokens))  # 4 of 8 blocks are spoken for
    loop.step()
    assert loop.free_blocks < 8 and loop.room.fits(len(small.tokens)) and not loop.room.fits(len(whole.tokens))
    loop.add(small)
    assert not loop.room.fits(1)  # no slot
    run(loop)
    assert loop.free_blocks == 8 and loop.room.fits(len(whole.tokens))


def test_the_end_of_one_sequence_makes_room_for_the_other_that_ran_out_of_blocks_in_the_same_round() -> None:
    loop = attached(FakeVerifier(num_blocks=5, block_size=4, max_model_len=20))
    short, long = sequence(1, max_tokens=6, draft_length=0), sequence(8, max_tokens=10, draft_length=0)
    commits = run(loop, short, long)
    assert [t for c in commits if c.sequence is short for t in c.token_ids] == text_of(short, 6)
    assert [t for c in commits if c.sequence is long for t in c.token_ids] == text_of(long, 10)
    assert long.stats.rounds == 10 and long.stats.recomputations == 0
