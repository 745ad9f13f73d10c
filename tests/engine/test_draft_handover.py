"""Drafts through the arena: who waits for what, and what is not believed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from qspec.engine import draft_handover
from qspec.engine.draft_handover import DraftHandover
from qspec.engine.regions import DRAFT_BELL, DRAFT_COUNTS, DRAFT_HANDED, DRAFT_LEASES, DRAFT_TOKENS
from qspec.interfaces import DraftResult, RegionWriter, SlotOutcome, Verification
from qspec.memory.arena import HostArena
from qspec.memory.futex import FUTEX_AVAILABLE, futex_wait, futex_wake
from qspec.memory.layout import RegionSpec

OWN = RegionWriter.DRAFTER
SPECS = [
    RegionSpec("weights", torch.int64, (1,)),
    RegionSpec(DRAFT_TOKENS, torch.int32, (3, 4), OWN), RegionSpec(DRAFT_COUNTS, torch.int64, (3,), OWN),
    RegionSpec(DRAFT_LEASES, torch.int64, (3,), OWN), RegionSpec(DRAFT_HANDED, torch.int64, (1,), OWN),
    RegionSpec(DRAFT_BELL, torch.int32, (1,), OWN),
]
pytestmark = pytest.mark.skipif(not FUTEX_AVAILABLE, reason="no futex on this machine")


@pytest.fixture
def ends() -> Iterator[tuple[DraftHandover, DraftHandover, HostArena]]:
    """The drafter's and the verifier's, over two mappings of the same memory; the drafter's mapping."""
    created = HostArena.create(SPECS, epoch=1, fingerprint="f")
    opened = HostArena.open(created.descriptor)
    yield DraftHandover(opened, 100), DraftHandover(created, 100), opened
    opened.close()
    created.close()


def drafts(slot: int, lease: int, *tokens: int) -> DraftResult:
    return DraftResult(slot=slot, lease=lease, outcome=SlotOutcome.OK, draft_tokens=tokens)


def awaits(slot: int, lease: int, most: int) -> Verification:
    return Verification(slot=slot, lease=lease, committed_len=9, pending_token=1, draft_tokens=(), awaited_drafts=most)


Ends = tuple[DraftHandover, DraftHandover, HostArena]


def test_what_is_there_is_taken_at_once(ends: Ends) -> None:
    drafter, verifier, _ = ends
    drafter.put(4, [drafts(0, 7, 1, 2, 3), drafts(2, 8), drafts(1, 9, 5)])
    taken = verifier.take(4, [awaits(0, 7, 3), awaits(1, 9, 4), awaits(2, 8, 2)])
    assert taken == {0: (1, 2, 3), 1: (5,), 2: ()}


@pytest.mark.parametrize("before", [
    lambda drafter: None,
    lambda drafter: drafter.put(3, [drafts(0, 7, 9)]),  # the round before
    lambda drafter: drafter.put(4, [drafts(0, 6, 9)]),  # another tenancy's
], ids=["nothing", "round", "lease"])
def test_it_waits_for_those_of_its_round_and_tenancy(ends: Ends, before: object) -> None:
    drafter, verifier, _ = ends
    before(drafter)  # type: ignore[operator]
    taken: list[object] = []
    waiting = threading.Thread(target=lambda: taken.append(verifier.take(4, [awaits(0, 7, 2)])))
    waiting.start()
    time.sleep(0.02)
    assert not taken
    drafter.put(4, [drafts(0, 7, 1, 2)])
    waiting.join(5)
    assert taken == [{0: (1, 2)}]


def test_nonsense_is_no_draft(ends: Ends) -> None:
    drafter, verifier, arena = ends
    drafter.put(4, [drafts(0, 7, 1, 100), drafts(1, 7, -1), drafts(2, 7, 1, 2, 3)])
    assert verifier.take(4, [awaits(0, 7, 2), awaits(1, 7, 2), awaits(2, 7, 2)]) == {0: (), 1: (), 2: ()}
    for count in (-1, 5, 1 << 40):
        arena.tensor(DRAFT_COUNTS)[0] = count
        assert verifier.take(4, [awaits(0, 7, 4)]) == {0: ()}
    assert verifier.take(4, [awaits(17, 7, 4), awaits(1, 7, 1)]) == {1: ()}, "a slot that does not exist is not read"


def test_given_up(ends: Ends) -> None:
    drafter, verifier, _ = ends
    verifier.give_up(5)
    assert verifier.take(5, [awaits(0, 7, 2)]) == {}
    drafter.put(6, [drafts(0, 7, 1)])
    assert verifier.take(6, [awaits(0, 7, 2)]) == {0: (1,)}, "another round is not"


def test_it_does_not_wait_for_ever(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft_handover, "HANDOVER_TIMEOUT_S", 0.1)
    assert ends[1].take(4, [awaits(0, 7, 2)]) == {}


def test_futex() -> None:
    word = torch.tensor([5], dtype=torch.int32)
    began = time.monotonic()
    futex_wait(word.data_ptr(), 4, 5.0)  # it is not 4
    assert time.monotonic() - began < 1
    futex_wait(word.data_ptr(), 5, 0.05)
    assert time.monotonic() - began >= 0.05
    woken = threading.Thread(target=futex_wait, args=(word.data_ptr(), 5, 20.0))
    woken.start()
    while woken.is_alive():
        futex_wake(word.data_ptr())
        time.sleep(0.005)
    assert time.monotonic() - began < 10
