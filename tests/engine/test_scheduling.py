"""The loop over the verifier's own blocks and slots: whoever comes, goes or gives way, every text stays the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qspec.errors import WorkerLost
from qspec.interfaces import AcceptanceRule, Sampling, SlotOutcome, VerifyAnswer, VerifyBatch
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop
from tests.engine.paper_workers import VOCAB_SIZE, PaperDrafter, PaperVerifier
from tests.toy_model import continue_text

MOST_ROUNDS = 1000
BEGINNINGS = tuple(tuple((start * 7 + 3 * index) % VOCAB_SIZE for index in range(24)) for start in range(2))
SEEDED = Sampling(temperature=1.0, seed=5)
REJECTING = Sampling(temperature=1.0, seed=6, rule=AcceptanceRule.REJECTION)


class CountingVerifier(PaperVerifier):
    """Knows whether drafts were to blame when a batch ran out of blocks. When ``unheard``, its next answer is lost."""

    unheard = False
    short_while_drafting = 0
    """Drafts that were not looked at because there was no block even without them."""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        answer = self._counted(batch)
        if self.unheard:
            self.unheard = False
            raise WorkerLost("lost by the test")
        return answer

    def _counted(self, batch: VerifyBatch) -> VerifyAnswer:
        before = {slot: len(tenancy.blocks) for slot, tenancy in self.slots._tenancies.items()}
        answer = super().verify(batch)
        without = {item.slot: -(-item.committed_len // self.block_size) for item in batch.verifications}
        drafting = {item.slot for item in batch.verifications if item.draft_tokens}
        short = [result.slot for result in answer.results if result.outcome is SlotOutcome.NO_BLOCKS]
        taken = sum(
            len(self.slots._tenancies[slot].blocks) - max(before[slot], without[slot])
            for slot in drafting.difference(short))
        self.short_while_drafting += len(drafting.intersection(short))
        for slot in short:
            if slot in without:
                missing = without[slot] - len(self.slots._tenancies[slot].blocks)
                assert missing > answer.free_blocks + taken, "short of blocks for the sake of drafts"
        return answer


class Scheduling(RuleBasedStateMachine):
    """Sequences with beginnings in common over few slots and blocks; workers may be lost, and answers on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SpeculationLoop()
        self.epochs = itertools.count(1)
        self.sequences: list[Sequence] = []  # all that came, in order
        self.cancelled: list[Sequence] = []
        self.committed: dict[str, list[int]] = {}
        self.begun: list[Sequence] = []  # in the order in which they got a slot first
        self.attach()

    def attach(self) -> None:
        """A verifier, and a drafter."""
        self.verifier = CountingVerifier(num_blocks=14, epoch=next(self.epochs))
        self.loop.attach_verifier(self.verifier)
        self.attach_drafter()

    def attach_drafter(self) -> None:
        """Another drafter."""
        self.drafter = PaperDrafter(self.verifier, self.loop.committed_tokens)
        self.loop.attach_drafter(self.drafter)

    @rule(
        beginning=st.sampled_from(BEGINNINGS), shared=st.integers(1, 24),
        own=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=6), max_tokens=st.integers(1, 16),
        sampling=st.sampled_from([Sampling(), SEEDED, REJECTING]), draft_length=st.sampled_from([None, 0, 3]),
        client=st.sampled_from("ab"), priority=st.integers(0, 2), salt=st.sampled_from(["", "", "s"]))
    def come(
        self, beginning: tuple[int, ...], shared: int, own: list[int], max_tokens: int, sampling: Sampling,
        draft_length: int | None, client: str, priority: int, salt: str,
    ) -> None:
        sequence = Sequence(
            str(len(self.sequences)), [*beginning[:shared], *own], max_tokens, sampling, draft_length=draft_length,
            client=client, priority=priority, cache_salt=salt)
        self.sequences.append(sequence)
        self.committed[sequence.request_id] = []
        self.loop.add(sequence)

    @precondition(lambda self: self.unfinished)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        sequence = self.unfinished[which % len(self.unfinished)]
        self.loop.remove(sequence)
        self.cancelled.append(sequence)

    @precondition(lambda self: self.loop.has_work)
    @rule(rounds=st.integers(1, 4))
    def step(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self.loop.has_work:
                return
            for commit in self.loop.step():
                self.committed[commit.sequence.request_id] += commit.token_ids
            self.begun += sorted(
                (one for one in self.sequences if one.lease and one not in self.begun), key=lambda one: one.lease)

    @rule()
    def lose_the_verifier(self) -> None:
        self.attach()
        assert self.verifier.slots.free_blocks == self.verifier.num_blocks

    @rule()
    def lose_an_answer(self) -> None:
        self.verifier.unheard = True

    @rule()
    def lose_the_drafter(self) -> None:
        self.drafter.dying = True

    @precondition(lambda self: not self.loop.drafter_attached)
    @rule()
    def replace_the_drafter(self) -> None:
        self.attach_drafter()

    @property
    def unfinished(self) -> list[Sequence]:
        """Those that are waiting or running."""
        return [one for one in self.sequences if one.finish is None and one not in self.cancelled]

    @invariant()
    def every_block_is_counted(self) -> None:
        self.verifier.check_books()

    @invariant()
    def every_text_is_the_beginning_of_what_it_is_alone(self) -> None:
        for one in self.sequences:
            made = one.generated
            assert made == self.committed[one.request_id], "lost, repeated or reordered"
            assert made == continue_text(one.prompt, len(made), one.sampling, VOCAB_SIZE)

    @invariant()
    def whoever_came_first_begins_first(self) -> None:
        arrivals = [one.arrival for one in self.begun]
        assert arrivals == sorted(arrivals)

    def teardown(self) -> None:
        for _ in range(MOST_ROUNDS):
            if not self.loop.has_work:
                break
            self.step(1)
            self.every_block_is_counted()
        assert not self.loop.has_work, "the loop does not come to an end"
        self.every_text_is_the_beginning_of_what_it_is_alone()
        assert all(len(one.generated) == one.max_tokens for one in self.sequences if one not in self.cancelled)
        assert self.verifier.slots.free_blocks == self.verifier.num_blocks


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)


def sequence(prompt: list[int], max_tokens: int = 4, **fields: object) -> Sequence:
    """A greedy one without drafts."""
    return Sequence("", prompt, max_tokens, Sampling(), draft_length=0, **fields)  # type: ignore[arg-type]


def attached(verifier: PaperVerifier) -> SpeculationLoop:
    """A loop without a drafter."""
    loop = SpeculationLoop()
    loop.attach_verifier(verifier)
    return loop


def run(loop: SpeculationLoop, *wanted: Sequence) -> None:
    """Make these texts together."""
    for one in wanted:
        loop.add(one)
    for _ in range(MOST_ROUNDS):
        if not loop.has_work:
            break
        loop.step()
    for one in wanted:
        assert one.generated == continue_text(one.prompt, one.max_tokens, one.sampling, VOCAB_SIZE)


def test_texts_of_one_prompt_that_come_together_prefill_it_once() -> None:
    verifier = PaperVerifier(max_slots=4, num_blocks=32, max_batch_rows=64)
    wanted = [sequence(list(range(22))) for _ in range(4)]
    run(attached(verifier), *wanted)
    # 21 tokens are entered before the pending one: five blocks, and one position of a sixth, which each has to itself.
    assert verifier.prefill_rows == 21 + 3 * 1
    assert [one.cached_prompt_tokens for one in wanted] == [0, 20, 20, 20]


def test_a_text_waits_only_for_what_it_shares() -> None:
    verifier = PaperVerifier(max_slots=2, num_blocks=32, max_batch_rows=8)
    loop = attached(verifier)
    long, short = sequence(list(range(40))), sequence([*range(4), 90, 91])
    loop.add(long)
    loop.add(short)
    loop.step()
    assert (long.cached_len, short.admitted) == (8, False)
    loop.step()
    assert short.admitted and long.cached_len < 39, "the rest of the long one is none of its business"
    run(loop)
    assert short.cached_prompt_tokens == 4


def test_more_texts_run_at_once_where_they_share_blocks() -> None:
    together = {}
    for prefix_cache in (True, False):
        verifier = PaperVerifier(
            max_slots=4, num_blocks=12, block_size=4, max_batch_rows=64, prefix_cache=prefix_cache)
        loop = attached(verifier)
        wanted = [sequence([*range(20), 50 + index], max_tokens=3) for index in range(4)]
        for one in wanted:
            loop.add(one)
        most = 0
        while loop.has_work:
            loop.step()
            most = max(most, loop.running)
        together[prefix_cache] = most
        assert all(one.stats.recomputations == 0 for one in wanted)
    assert together == {True: 4, False: 2}  # 6 blocks each, of which 5 are the same


def test_what_running_texts_hold_is_said_anew_only_when_it_has_changed() -> None:
    loop = attached(PaperVerifier(max_slots=2, num_blocks=12, block_size=4, max_batch_rows=64))
    loop.add(sequence([*range(9)], max_tokens=9))
    said = [loop.room.held]
    while loop.has_work:
        loop.step()
        said.append(loop.room.held)
    assert [len(held) for held in said] == [0, 2, 2, 2, 3, 3, 3, 3, 4, 0, 0]
    assert all((one is other) == (one == other) for one, other in itertools.pairwise(said))
    waiting = sequence([*range(9)])
    loop.add(waiting)
    assert loop.room.coming == set(waiting.block_names(4)) and not loop.room.held


def test_a_prompt_that_is_being_entered_has_a_claim_to_blocks_for_all_of_it() -> None:
    loop = attached(PaperVerifier(max_slots=3, num_blocks=12, block_size=4, max_batch_rows=8))
    long = sequence([*range(40)], max_tokens=2)
    loop.add(long)
    loop.step()
    assert loop.free_blocks == 10, "two blocks are entered"
    assert loop.room.fits(3) and not loop.room.fits(4), "and nine more will be"
    run(loop, sequence([60, 61, 62, 63, 64], max_tokens=2), sequence([70], max_tokens=2))
    assert loop.preemptions == 0


def test_what_a_preempted_text_had_is_found_again_while_nobody_needs_it() -> None:
    verifier = PaperVerifier(max_slots=2, num_blocks=9, block_size=4, max_batch_rows=64)
    loop = attached(verifier)
    old, new = sequence(list(range(14)), max_tokens=18), sequence(list(range(50, 64)), max_tokens=10)
    run(loop, old, new)
    assert (old.stats.recomputations, new.stats.recomputations) == (0, 1)
    assert verifier.prefill_rows < 13 + 13 + 13, "not all of it was computed again"


def test_nobody_gives_way_while_blocks_come_back_anyway() -> None:
    loop = attached(PaperVerifier(max_slots=2, num_blocks=5, block_size=4, max_batch_rows=64))
    long, short = sequence(list(range(10)), max_tokens=8), sequence(list(range(50, 55)), max_tokens=4)
    run(loop, long, short)  # the long one needs a fourth block in the very round in which the short one ends
    assert (long.stats.recomputations, short.stats.recomputations) == (0, 0)


def test_nobody_gives_way_for_the_sake_of_drafts() -> None:
    for draft_length in (0, 8):
        verifier = CountingVerifier(max_slots=2, num_blocks=6, block_size=4, max_batch_rows=64)
        loop = attached(verifier)
        loop.attach_drafter(PaperDrafter(verifier, loop.committed_tokens))
        wanted = [sequence([start, *range(5)], max_tokens=most) for start, most in ((90, 10), (50, 4))]
        for one in wanted:
            one.draft_length = draft_length
        run(loop, *wanted)  # the first needs its fourth block when the second has given back its third
        assert [one.stats.recomputations for one in wanted] == [0, 0]
        assert bool(wanted[0].stats.drafted) == bool(draft_length)


def test_drafts_that_met_no_blocks_are_drawn_again_under_rejection() -> None:
    verifier = CountingVerifier(max_slots=2, num_blocks=5, block_size=4, max_batch_rows=64)
    loop = attached(verifier)
    loop.attach_drafter(PaperDrafter(verifier, loop.committed_tokens))
    wanted = [Sequence("", [start, *range(5)], 8, REJECTING, draft_length=3) for start in (90, 50)]
    run(loop, *wanted)
    assert verifier.short_while_drafting == 1
    assert [one.stats.recomputations for one in wanted] == [0, 1]
    assert wanted[0].stats.accepted > 0


@pytest.mark.parametrize(("others", "victim"), [
    ([("a", 0), ("a", 0), ("a", 0)], 2),  # the newest
    ([("a", 1), ("a", 0), ("a", 1)], 1),  # the lowest priority
    ([("a", 0), ("a", 0), ("a", 1)], 1),  # and of those the newest
    ([("b", -5), ("a", 1), ("a", 2)], 1),  # of the newest one's client: priorities take nothing from others
])
def test_who_gives_way(others: list[tuple[str, int]], victim: int) -> None:
    loop = attached(PaperVerifier(max_slots=3, num_blocks=16, max_batch_rows=64))
    wanted = [
        sequence([20 * index + 1], max_tokens=40, client=client, priority=priority)
        for index, (client, priority) in enumerate(others)
    ]
    for one in wanted:
        loop.add(one)
    while not any(one.stats.recomputations for one in wanted):
        loop.step()
    assert [one.stats.recomputations for one in wanted] == [int(index == victim) for index in range(3)]
