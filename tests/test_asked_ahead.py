"""The loop where workers are asked for a round before the one before is answered: the same texts, whatever happens."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec import speculation
from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import QspecError, WorkerLost
from qspec.interfaces import Sampling, VerifyAnswer, VerifyBatch
from qspec.sequence import FinishReason, Sequence
from qspec.speculation import SpeculationLoop
from tests.fakes import FakeDrafter, FakeVerifier
from tests.overlapping_fakes import Awaiting, Handing, Place
from tests.test_speculation import run, sequence, text_of


@pytest.fixture(autouse=True)
def every_round_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "AHEAD_BELOW_S", 60.0)


@dataclass
class Stack:
    """A loop over workers that can be asked ahead."""

    place: Place = field(default_factory=Place)
    slots: int = 4
    blocks: int = 64
    drafts: bool = True

    def __post_init__(self) -> None:
        self.loop = SpeculationLoop()
        self.begin()

    def begin(self) -> None:
        """New workers."""
        self.place = Place()
        self.verifier = Awaiting(self.place, asked_ahead=True, max_slots=self.slots, num_blocks=self.blocks)
        self.drafter = Handing(self.place)
        self.loop.attach_verifier(self.verifier)
        if self.drafts:
            self.loop.attach_drafter(self.drafter)


def in_turn(*texts: Sequence) -> None:
    """The same by workers that are asked one after the other."""
    loop = SpeculationLoop()
    loop.attach_verifier(FakeVerifier())
    loop.attach_drafter(FakeDrafter(wrong_every=3))
    run(loop, *texts)


def test_texts_and_counts_are_those_of_asking_in_turn() -> None:
    texts = [sequence(start=start, max_tokens=30) for start in (1, 2, 3)]
    stack = Stack()
    run(stack.loop, *texts)
    others = [sequence(start=start, max_tokens=30) for start in (1, 2, 3)]
    in_turn(*others)
    assert stack.loop.rounds_asked_ahead > 3 and stack.verifier.continued > 9
    for text, other in zip(texts, others, strict=True):
        assert text.tokens == other.tokens == text.prompt + text_of(text, 30)
        assert (text.stats.drafted, text.stats.accepted) == (other.stats.drafted, other.stats.accepted)
        assert text.stats.rounds == other.stats.rounds and text.stats.recomputations == 0


def test_plain_rounds_are_asked_ahead_too() -> None:
    stack, text = Stack(drafts=False), sequence(max_tokens=20)
    run(stack.loop, text)
    assert text.tokens == text.prompt + text_of(text, 20)
    assert (stack.loop.rounds_asked_ahead, text.stats.rounds) == (18, 20)  # not the first two


def test_a_long_round_is_not_followed_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "AHEAD_BELOW_S", 0.0)
    stack, text = Stack(), sequence(max_tokens=20)
    run(stack.loop, text)
    assert text.tokens == text.prompt + text_of(text, 20) and stack.loop.rounds_asked_ahead == 0


def test_costs_are_what_the_verifier_says_whenever_an_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is read late makes the next one seem early; calls that seem short would be believed."""
    stack = Stack()
    stack.verifier.delay_s = 0.004
    begin, pause = stack.verifier.begin_verify, itertools.cycle((0.0035, 0.0))

    class ReadLate:
        """An answer."""

        def __init__(self, batch: VerifyBatch) -> None:
            self._answer = begin(batch)

        def result(self) -> VerifyAnswer:
            answer = self._answer.result()
            time.sleep(next(pause))
            return answer

        def cancel(self) -> bool:
            return self._answer.cancel()

    monkeypatch.setattr(stack.verifier, "begin_verify", ReadLate)
    text = sequence(max_tokens=120)
    run(stack.loop, text)
    costs = stack.loop.policy.costs
    assert text.generated == text_of(text, 120) and stack.loop.rounds_asked_ahead > 20
    assert costs.verify_seconds(5) > 0.0039


def test_a_text_that_ends_unforeseen_leaves_a_row_behind_and_nothing_else() -> None:
    long = text_of(sequence(), 40)
    stack = Stack()
    ended, other = sequence(max_tokens=40, eos=long[6]), sequence(start=2, max_tokens=40)
    run(stack.loop, ended, other)
    assert (ended.finish, ended.generated) == (FinishReason.END_OF_SEQUENCE, long[: long.index(long[6]) + 1])
    assert other.generated == text_of(other, 40)
    assert stack.loop.free_blocks == 64 and not stack.loop.has_work


def test_texts_that_end_at_different_times_leave_no_gap() -> None:
    """Slots are given back by rounds that are asked for ahead, too."""
    stack = Stack()
    texts = [sequence(start=start, max_tokens=10 * start) for start in (1, 2, 3, 4)]
    run(stack.loop, *texts)
    for text in texts:
        assert text.generated == text_of(text, text.max_tokens)
    asked = [batch for batch in stack.verifier.batches if batch.verifications]
    assert stack.loop.rounds_asked_ahead >= len(asked) - 3
    released = [release.lease for batch in stack.verifier.batches[2:] for release in batch.releases]
    assert len(released) == len(set(released)) == 4 and stack.loop.free_blocks == 64


def test_whoever_is_dropped_or_comes_meanwhile() -> None:
    stack = Stack(slots=2)
    dropped, stays, comes = (sequence(start=start, max_tokens=40) for start in (1, 2, 3))
    loop = stack.loop
    loop.add(dropped)
    loop.add(stays)
    for _ in range(4):
        loop.step()
    assert loop.rounds_asked_ahead
    loop.remove(dropped)
    loop.add(comes)
    run(loop)
    assert stays.generated == text_of(stays, 40) and comes.generated == text_of(comes, 40)
    assert loop.free_blocks == 64


def test_constraints_are_not_asked_ahead() -> None:
    stack = Stack()
    text = Sequence("request", [1, 2], 12, Sampling(), draft_length=2, constraint=Constraint(ConstraintKind.REGEX, "x"))
    run(stack.loop, text)
    assert text.generated == text_of(text, 12) and stack.loop.rounds_asked_ahead == 0


def test_a_drafter_that_must_be_told_where_to_begin_is_asked_in_turn() -> None:
    stack, text = Stack(drafts=False), sequence(max_tokens=20, draft_length=None)
    stack.loop.attach_drafter(FakeDrafter(wrong_every=3))
    run(stack.loop, text)
    assert text.generated == text_of(text, 20) and text.stats.drafted and stack.loop.rounds_asked_ahead == 0


def test_workers_that_cannot_be_asked_ahead_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round that is under way is not lost with it."""
    stack, text = Stack(), sequence(max_tokens=40)
    loop = stack.loop
    loop.add(text)
    for _ in range(4):
        loop.step()
    begin, asked = stack.verifier.begin_verify, loop.rounds_asked_ahead

    def refuse(*_batch: object) -> None:
        raise WorkerLost("closed")

    monkeypatch.setattr(stack.verifier, "begin_verify", refuse)
    known = len(text.tokens)
    loop.step()
    assert len(text.tokens) > known and loop.rounds_asked_ahead == asked
    monkeypatch.setattr(stack.verifier, "begin_verify", begin)
    run(loop)
    assert text.generated == text_of(text, 40)


@pytest.mark.parametrize("kind", ["fails_before", "fails_after"])
def test_a_drafter_that_fails_while_two_rounds_are_asked_for(kind: str) -> None:
    stack, text = Stack(), sequence(max_tokens=60)
    loop = stack.loop
    loop.add(text)
    for _ in range(4):
        loop.step()
    getattr(stack.drafter, kind).update(range(1000))
    while loop.drafter_attached:
        loop.step()
    assert isinstance(loop.drafter_error, WorkerLost)
    loop.step()
    successor = Handing(stack.place)
    loop.attach_drafter(successor)  # while plain rounds are asked for ahead
    run(loop)
    assert text.generated == text_of(text, 60) and successor.results > 3 and text.stats.recomputations == 0


def test_an_answer_that_is_lost_while_the_next_is_asked_for() -> None:
    """The verifier has gone on, so that the text is computed again from where the loop knows it to be."""
    stack, text = Stack(), sequence(max_tokens=60)
    loop = stack.loop
    loop.add(text)
    for _ in range(4):
        loop.step()
    stack.verifier.lost.add(loop._round)
    run(loop)
    assert text.generated == text_of(text, 60) and text.stats.recomputations <= 1


def test_a_verifier_that_is_lost_takes_the_round_ahead_with_it() -> None:
    stack, text = Stack(), sequence(max_tokens=60)
    loop = stack.loop
    loop.add(text)
    for _ in range(4):
        loop.step()
    whole = stack.verifier.verify

    def dead(*_batch: object) -> None:
        raise WorkerLost("dead")

    stack.verifier.verify = dead  # type: ignore[assignment]
    with pytest.raises(QspecError):
        for _ in range(3):
            loop.step()
    stack.verifier.verify = whole  # type: ignore[method-assign]
    stack.begin()
    run(loop)
    assert text.generated == text_of(text, 60)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_course_of_events(data: st.DataObject) -> None:
    stack = Stack(slots=data.draw(st.integers(1, 3)), blocks=data.draw(st.integers(16, 40)))
    loop, texts, dropped = stack.loop, list[Sequence](), set[int]()
    for _ in range(data.draw(st.integers(5, 25))):
        event = data.draw(st.sampled_from(
            ["step", "step", "step", "add", "drop", "drafter dies", "drafter comes", "answer lost", "new verifier"]))
        if event == "add":
            texts.append(sequence(
                data.draw(st.integers(1, 9)), max_tokens=data.draw(st.integers(1, 30)), start=len(texts) + 1,
                draft_length=data.draw(st.sampled_from([None, 0, 1, 4]))))
            loop.add(texts[-1])
        elif event == "drop" and texts:
            index = data.draw(st.integers(0, len(texts) - 1))
            if texts[index].finish is None:
                dropped.add(index)
                loop.remove(texts[index])
        elif event == "drafter dies":
            stack.drafter.fails_before.update(range(1000))
        elif event == "drafter comes" and not loop.drafter_attached:
            stack.drafter = Handing(stack.place)
            loop.attach_drafter(stack.drafter)
        elif event == "answer lost":
            stack.verifier.lost.add(loop._round + data.draw(st.integers(0, 1)))
        elif event == "new verifier":
            stack.begin()
        else:
            loop.step()
    run(loop)
    for index, text in enumerate(texts):
        assert text.generated == text_of(text, len(text.generated))
        assert index in dropped or (text.finish, text.remaining) == (FinishReason.LENGTH, 0)
    assert loop.free_blocks == stack.blocks and not loop.running and not loop.waiting
