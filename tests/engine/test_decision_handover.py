"""Decisions through the arena: who waits for what, and what is not taken for an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from qspec.engine import decision_handover
from qspec.engine.batch_state import numbers
from qspec.engine.decision_handover import DecisionHandover
from qspec.engine.regions import DECIDED_BELL, DECIDED_ROUND, SLOT_CACHED, SLOT_LEASES, SLOT_PENDING, SLOT_ROUNDS
from qspec.interfaces import DraftItem, Sampling, SlotOutcome, VerifyResult
from qspec.memory.arena import HostArena
from qspec.memory.futex import FUTEX_AVAILABLE
from qspec.memory.layout import RegionSpec

SPECS = [
    RegionSpec("weights", torch.int64, (1,)),
    RegionSpec(SLOT_LEASES, torch.int64, (3,)), RegionSpec(SLOT_CACHED, torch.int64, (3,)),
    RegionSpec(SLOT_PENDING, torch.int32, (3,)), RegionSpec(SLOT_ROUNDS, torch.int64, (3,)),
    RegionSpec(DECIDED_ROUND, torch.int64, (1,)), RegionSpec(DECIDED_BELL, torch.int32, (1,)),
]
pytestmark = pytest.mark.skipif(not FUTEX_AVAILABLE, reason="no futex on this machine")
Ends = tuple[DecisionHandover, DecisionHandover]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The verifier's and the drafter's, over two mappings; slot 0 has lease 7 and 4 cached positions, slot 1 lease 8.
    """
    created = HostArena.create(SPECS, epoch=1, fingerprint="f")
    opened = HostArena.open(created.descriptor)
    numbers(created, SLOT_LEASES)[:2] = 7, 8
    numbers(created, SLOT_CACHED)[:2] = 4, 5
    yield DecisionHandover(created), DecisionHandover(opened)
    opened.close()
    created.close()


def result(slot: int, lease: int, *tokens: int, outcome: SlotOutcome = SlotOutcome.OK) -> VerifyResult:
    return VerifyResult(
        slot=slot, lease=lease, outcome=outcome, accepted=0, token_ids=tokens, cached_len=0, reserved_len=0)


def item(slot: int, lease: int, after: int) -> DraftItem:
    return DraftItem(
        slot=slot, lease=lease, committed_len=1, pending_token=0, draft_length=2, sampling=Sampling(),
        after_round=after)


def test_an_item_is_placed_where_its_round_left_it(ends: Ends) -> None:
    verifier, drafter = ends
    verifier.put(3, [result(0, 7, 5, 6), result(1, 8)])
    drafter.wait(3, 4)
    placed = drafter.placed(item(0, 7, 3))
    assert placed is not None
    assert (placed.committed_len, placed.pending_token, placed.after_round, placed.draft_length) == (5, 6, 0, 2)


@pytest.mark.parametrize(("end", "drafts"), [(0, 2), (9, 2), (8, 2), (7, 1)])
def test_drafts_are_no_more_than_there_is_room_for(ends: Ends, end: int, drafts: int) -> None:
    """Five tokens are committed, and a round makes one anyway."""
    verifier, drafter = ends
    verifier.put(3, [result(0, 7, 5)])
    placed = drafter.placed(replace(item(0, 7, 3), end_len=end))
    assert placed is not None and (placed.draft_length, placed.end_len) == (drafts, 0)


@pytest.mark.parametrize("end", [6, 5])
def test_a_text_without_room_for_drafts_is_not_placed(ends: Ends, end: int) -> None:
    verifier, drafter = ends
    verifier.put(3, [result(0, 7, 5)])
    assert drafter.placed(replace(item(0, 7, 3), end_len=end)) is None


@pytest.mark.parametrize("asked", [
    item(1, 8, 3),  # nothing was decided
    item(2, 9, 3),  # the text has ended and cannot go on
    item(0, 6, 3), item(0, 7, 2), item(0, 7, 4), item(9, 7, 3),
], ids=["undecided", "dead end", "another tenancy", "an earlier round", "a later round", "no such slot"])
def test_what_was_not_decided_in_its_round_is_not_placed(ends: Ends, asked: DraftItem) -> None:
    verifier, drafter = ends
    verifier.put(3, [result(0, 7, 5), result(1, 8), result(2, 9, 4, outcome=SlotOutcome.DEAD_END)])
    assert drafter.placed(asked) is None


def test_a_drafter_waits_for_the_round_and_for_no_other(ends: Ends) -> None:
    verifier, drafter = ends
    verifier.put(2, [result(0, 7, 1)])
    done = threading.Event()

    def wait() -> None:
        drafter.wait(3, 4)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not done.wait(0.15)
    verifier.put(3, [result(0, 7, 2)])
    assert done.wait(2)
    thread.join()
    drafter.wait(2, 4)  # the verifier is past that: at once


def test_a_round_that_is_given_up_is_not_waited_for(ends: Ends) -> None:
    _, drafter = ends
    for number in range(4, 9):
        drafter.give_up(number)  # perhaps before anybody waits, and several of them
    started = time.monotonic()
    drafter.wait(3, 4)
    drafter.wait(3, 8)
    assert time.monotonic() - started < 1


def test_a_verifier_that_says_nothing_is_not_waited_for_for_ever(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_handover, "DECISION_TIMEOUT_S", 0.2)
    started = time.monotonic()
    ends[1].wait(3, 4)
    assert 0.15 < time.monotonic() - started < 5
