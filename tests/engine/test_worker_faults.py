"""Workers that die, hang or talk nonsense: no token changes, nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.errors import QspecError, WorkerLost
from qspec.interfaces import (
    DraftAnswer,
    DraftBatch,
    Drafter,
    DrafterDescription,
    SlotOutcome,
    Verifier,
    VerifierDescription,
    VerifyAnswer,
    VerifyBatch,
)
from tests.engine.stacks import SEEDED, attached_loop, finish, generate, generate_alone, running, sequences

Answering = Callable[[DraftAnswer], DraftAnswer]
pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(scope="module")
def plain(model: Path, kernels: str) -> list[list[int]]:
    """The texts of the verifier alone."""
    torch.set_num_threads(1)
    with running(model, draft_quantization="off") as stack:
        return generate_alone(stack.loop, sequences(SEEDED))


class Looks:
    """A countdown that is over after so many looks."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def over(self) -> bool:
        """See ``Countdown``."""
        self._left -= 1
        return self._left < 0


def test_a_draft_ends_between_two_steps_when_its_time_is_over(
    model: Path, plain: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qspec.engine.drafter.Countdown", lambda seconds: Looks(1 + 3))
    with running(model) as stack:
        wanted = sequences(SEEDED, draft_length=8)
        assert generate(stack.loop, wanted) == plain
        assert max(len(one.stats.rounds_per_draft_length) for one in wanted) == 1 + 3


class FaultyDrafter:
    """A real drafter whose answers are spoiled from the third on."""

    def __init__(self, inner: Drafter, fault: Answering) -> None:
        self._inner, self._fault = inner, fault
        self.calls = 0

    def attach(self, verifier: VerifierDescription) -> DrafterDescription:
        """See ``Drafter``."""
        return self._inner.attach(verifier)

    def detach(self, epoch: int) -> None:
        """See ``Drafter``."""
        self._inner.detach(epoch)

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        """See ``Drafter``."""
        self.calls += 1
        answer = self._inner.draft(batch)
        return answer if self.calls < 3 else self._fault(answer)

    def close(self) -> None:
        """See ``Drafter``."""
        self._inner.close()


def lost(answer: DraftAnswer) -> DraftAnswer:
    raise WorkerLost("killed by the test")


def with_first(answer: DraftAnswer, **changes: object) -> DraftAnswer:
    first = replace(answer.results[0], **changes)  # type: ignore[arg-type]
    return replace(answer, results=(first, *answer.results[1:]))


FATAL: dict[str, Answering] = {
    "lost": lost,
    "another slot": lambda answer: with_first(answer, slot=answer.results[0].slot + 1),
    "another lease": lambda answer: with_first(answer, lease=answer.results[0].lease + 1),
    "another round": lambda answer: replace(answer, round=answer.round - 1),
    "token out of the vocabulary": lambda answer: with_first(answer, draft_tokens=(320,)),
    "negative token": lambda answer: with_first(answer, draft_tokens=(-1,)),
    "too many tokens": lambda answer: with_first(answer, draft_tokens=(1,) * 5),
    "too few results": lambda answer: replace(answer, results=answer.results[1:]),
    "too many results": lambda answer: replace(answer, results=answer.results * 2),
    "stale with tokens out of the vocabulary": lambda answer: with_first(
        answer, outcome=SlotOutcome.STALE, draft_tokens=(10**6,) * 50
    ),
}


@pytest.mark.parametrize("fault", FATAL)
def test_a_broken_drafter_changes_no_token_and_is_asked_no_more(
    model: Path, plain: list[list[int]], fault: str
) -> None:
    with running(model) as stack:
        assert stack.drafter is not None
        drafter = FaultyDrafter(stack.drafter, FATAL[fault])
        stack.loop.attach_drafter(drafter)
        wanted = sequences(SEEDED, draft_length=4)
        assert generate(stack.loop, wanted) == plain
        assert drafter.calls == 3
        assert not stack.loop.drafter_attached
        assert isinstance(stack.loop.drafter_error, QspecError)
        assert all(sequence.stats.rounds_without_drafter > 0 for sequence in wanted)


def test_a_drafter_that_comes_back_is_used_again(model: Path, plain: list[list[int]]) -> None:
    with running(model) as stack:
        assert stack.drafter is not None
        stack.loop.attach_drafter(FaultyDrafter(stack.drafter, lost))
        assert generate(stack.loop, sequences(SEEDED, draft_length=4)) == plain
        stack.loop.attach_drafter(stack.drafter)
        assert stack.loop.drafter_error is None
        again = sequences(SEEDED, draft_length=4)
        assert generate(stack.loop, again) == plain
        assert sum(sequence.stats.drafted for sequence in again) > 0


GARBAGE: dict[str, Answering] = {
    "random tokens": lambda answer: replace(
        answer,
        results=tuple(
            replace(result, draft_tokens=(3, 1, 4)[: len(result.draft_tokens)]) for result in answer.results
        ),
    ),
    "no tokens": lambda answer: replace(
        answer, results=tuple(replace(result, draft_tokens=()) for result in answer.results)
    ),
    "always stale": lambda answer: replace(
        answer,
        results=tuple(replace(result, outcome=SlotOutcome.STALE, draft_tokens=()) for result in answer.results),
    ),
}


@pytest.mark.parametrize("fault", GARBAGE)
def test_a_useless_drafter_changes_no_token(model: Path, plain: list[list[int]], fault: str) -> None:
    with running(model) as stack:
        assert stack.drafter is not None
        stack.loop.attach_drafter(FaultyDrafter(stack.drafter, GARBAGE[fault]))
        assert generate(stack.loop, sequences(SEEDED, draft_length=4)) == plain
        assert stack.loop.drafter_attached


class FaultyVerifier:
    """A real verifier that is lost in given calls: before it did the work, or with the answer on its way."""

    def __init__(self, inner: Verifier, lost_calls: range, *, after_the_work: bool) -> None:
        self._inner, self._lost_calls, self._after_the_work = inner, lost_calls, after_the_work
        self.calls = 0

    def describe(self) -> VerifierDescription:
        """See ``Verifier``."""
        return self._inner.describe()

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        self.calls += 1
        answer = self._inner.verify(batch) if self.calls not in self._lost_calls or self._after_the_work else None
        if answer is None or self.calls in self._lost_calls:
            raise WorkerLost("killed by the test")
        return answer

    def close(self) -> None:
        """See ``Verifier``."""
        self._inner.close()


@pytest.mark.parametrize("after_the_work", [False, True])
@pytest.mark.parametrize("call", range(3, 9))  # the first two claim the slots
def test_a_stream_lost_once_loses_nothing(
    model: Path, plain: list[list[int]], call: int, after_the_work: bool
) -> None:
    with running(model, max_batch_rows=40) as stack:
        verifier = FaultyVerifier(stack.verifier, range(call, call + 1), after_the_work=after_the_work)
        wanted = sequences(SEEDED, draft_length=4)
        assert generate(attached_loop(verifier, stack.drafter), wanted) == plain
        assert verifier.calls > call
        assert stack.free_blocks == stack.verifier.describe().num_blocks


@pytest.mark.parametrize("after_the_work", [False, True])
@pytest.mark.parametrize("call", [3, 4, 7])
def test_texts_go_on_with_another_verifier(
    model: Path, plain: list[list[int]], call: int, after_the_work: bool
) -> None:
    with running(model) as first, running(model, epoch=2, draft_quantization="off") as second:
        verifier = FaultyVerifier(first.verifier, range(call, 1000), after_the_work=after_the_work)
        loop = attached_loop(verifier, first.drafter)
        wanted = sequences(SEEDED, draft_length=4)
        for sequence in wanted:
            loop.add(sequence)
        with pytest.raises(WorkerLost):
            finish(loop, wanted)
        before = [list(sequence.generated) for sequence in wanted]
        assert all(text == whole[: len(text)] for text, whole in zip(before, plain, strict=True))
        loop.attach_verifier(second.verifier)
        assert not loop.drafter_attached
        loop.step()
        assert first.drafter is not None
        loop.attach_drafter(first.drafter)
        assert finish(loop, wanted) == plain
        assert all(sequence.stats.recomputations == 1 for sequence in wanted)
        assert second.free_blocks == second.verifier.describe().num_blocks


def test_texts_go_on_when_the_same_verifier_is_attached_again(model: Path, plain: list[list[int]]) -> None:
    with running(model, kv_tokens=160) as stack:
        wanted = sequences(SEEDED, draft_length=4)
        for sequence in wanted:
            stack.loop.add(sequence)
        for _ in range(3):
            stack.loop.step()
        stack.loop.attach_verifier(stack.verifier)
        assert stack.drafter is not None
        stack.loop.attach_drafter(stack.drafter)
        assert finish(stack.loop, wanted) == plain


def test_another_loop_finds_every_slot_free(model: Path, plain: list[list[int]]) -> None:
    with running(model) as stack:
        for sequence in sequences(draft_length=4):
            stack.loop.add(sequence)
        for _ in range(3):
            stack.loop.step()
        loop = attached_loop(stack.verifier, stack.drafter)  # as a coordinator that was started anew
        assert stack.free_blocks == stack.verifier.describe().num_blocks
        assert generate(loop, sequences(SEEDED, draft_length=4)) == plain


@pytest.mark.parametrize("rounds", [0, 1, 2, 4])
def test_a_removed_sequence_is_gone_with_the_next_step(model: Path, plain: list[list[int]], rounds: int) -> None:
    with running(model, max_batch_rows=20) as stack:
        wanted = sequences(SEEDED, draft_length=2)
        for sequence in wanted:
            stack.loop.add(sequence)
        for _ in range(rounds):
            stack.loop.step()
        for index in (3, 1):
            stack.loop.remove(wanted[index])
        stack.loop.remove(wanted[1])  # again, without effect
        length = len(wanted[1].tokens), len(wanted[3].tokens)
        stack.loop.step()
        assert stack.loop.running + stack.loop.waiting == 3
        texts = finish(stack.loop, wanted)
        assert (len(wanted[1].tokens), len(wanted[3].tokens)) == length
        assert [texts[index] for index in (0, 2, 4)] == [plain[index] for index in (0, 2, 4)]
        assert stack.free_blocks == stack.verifier.describe().num_blocks
