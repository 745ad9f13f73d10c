"""The loop where both workers are asked at once: the same text, whatever becomes of the drafter meanwhile."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from qspec.errors import QspecError, WorkerLost
from qspec.interfaces import VerifyAnswer, VerifyBatch
from qspec.speculation import SpeculationLoop
from tests.fakes import FakeDrafter, FakeVerifier
from tests.overlapping_fakes import Awaiting, Handing, Place
from tests.test_speculation import run, sequence, text_of


@pytest.fixture
def workers() -> tuple[Awaiting, Handing]:
    place = Place()
    return Awaiting(place), Handing(place)


def loop_of(workers: tuple[Awaiting, Handing]) -> SpeculationLoop:
    loop = SpeculationLoop()
    loop.attach_verifier(workers[0])
    loop.attach_drafter(workers[1])
    return loop


def test_text_and_counts_are_those_of_asking_in_turn(workers: tuple[Awaiting, Handing]) -> None:
    texts = [sequence(start=start, max_tokens=12) for start in (1, 2, 3)]
    loop = loop_of(workers)
    run(loop, *texts)
    assert workers[0].awaited > 3
    in_turn = SpeculationLoop()
    in_turn.attach_verifier(FakeVerifier())
    in_turn.attach_drafter(FakeDrafter(wrong_every=3))
    others = [sequence(start=start, max_tokens=12) for start in (1, 2, 3)]
    run(in_turn, *others)
    for text, other in zip(texts, others, strict=True):
        assert text.tokens == other.tokens == text.prompt + text_of(text, 12)
        assert (text.stats.rounds, text.stats.drafted, text.stats.accepted) == (
            other.stats.rounds, other.stats.drafted, other.stats.accepted)
        assert 3e-6 <= text.stats.draft_s < text.stats.round_s, "what was drafted, or waited for"


@pytest.mark.parametrize("kind", ["fails_before", "fails_after", "fails_at_once"])
def test_a_drafter_that_fails_costs_a_round_its_drafts_and_nothing_else(
    workers: tuple[Awaiting, Handing], kind: str
) -> None:
    drafter = workers[1]
    loop, text = loop_of(workers), sequence(max_tokens=20)
    loop.add(text)
    loop.step()
    loop.step()
    if kind == "fails_at_once":
        drafter.fails_at_once = True
    else:
        getattr(drafter, kind).update(range(1000))
    accepted = text.stats.accepted
    loop.step()
    assert isinstance(loop.drafter_error, WorkerLost) and not loop.drafter_attached
    assert (text.stats.accepted > accepted) == (kind == "fails_after"), "drafts that were there already may stand"
    assert text.stats.accepted <= text.stats.drafted
    while loop.has_work:
        loop.step()
    assert text.tokens == text.prompt + text_of(text, 20)


def test_an_answer_that_is_lost_is_asked_for_again_with_the_drafts(workers: tuple[Awaiting, Handing]) -> None:
    verifier, _ = workers
    loop, text = loop_of(workers), sequence(max_tokens=20)
    loop.add(text)
    for _ in range(2):
        loop.step()
    verifier.lost.update(range(1000))
    asked, awaited = len(verifier.batches), verifier.awaited
    loop.step()
    first, again = verifier.batches[asked:]
    assert verifier.awaited == awaited + 1 and first == again, "the second time nothing is awaited"
    while loop.has_work:
        loop.step()
    assert text.tokens == text.prompt + text_of(text, 20)


def test_a_verifier_that_is_lost_leaves_no_answer_behind(workers: tuple[Awaiting, Handing]) -> None:
    verifier, drafter = workers
    loop, text = loop_of(workers), sequence(max_tokens=20)
    loop.add(text)
    for _ in range(2):
        loop.step()

    def refuse(batch: VerifyBatch) -> Future[VerifyAnswer]:
        raise WorkerLost("closed")

    made = drafter.results
    verifier.begin_verify = refuse  # type: ignore[method-assign]
    with pytest.raises(QspecError):
        loop.step()
    assert drafter.results == made + 1, "the draft was waited for"
