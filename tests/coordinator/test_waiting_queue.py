"""Whose turn it is, over random arrivals, withdrawals, turns and charges."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.waiting_queue import WaitingQueue

CLIENTS = st.sampled_from("abcde")
PRIORITIES = st.integers(-2, 2)


class Turns(RuleBasedStateMachine):
    """A queue beside a list of what waits in it: nothing lost, nothing repeated, everyone's own order kept."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: WaitingQueue[int] = WaitingQueue(remembered=3)
        self.waiting: dict[int, tuple[str, int]] = {}  # in the order of arrival
        self.number = 0

    def line(self, client: str) -> list[int]:
        """A client's items in their order: by priority, then by arrival (``sorted`` is stable)."""
        mine = [item for item, (owner, _) in self.waiting.items() if owner == client]
        return sorted(mine, key=lambda item: -self.waiting[item][1])

    @rule(client=CLIENTS, priority=PRIORITIES)
    def push(self, client: str, priority: int) -> None:
        self.number += 1
        self.queue.push(self.number, client=client, priority=priority)
        self.waiting[self.number] = (client, priority)

    @precondition(lambda self: self.waiting)
    @rule(cost=st.integers(0, 50))
    def pop(self, cost: int) -> None:
        head = self.queue.head()
        item = self.queue.pop()
        assert item == head
        client, _ = self.waiting[item]
        assert item == self.line(client)[0]
        del self.waiting[item]
        self.queue.charge(client, cost)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.remove(item) and not self.queue.remove(item)
        del self.waiting[item]

    @rule(client=CLIENTS)
    def displace(self, client: str) -> None:
        counts = Counter(owner for owner, _ in self.waiting.values())
        could = self.queue.can_displace_for(client)
        item = self.queue.displace_for(client)
        assert could == (item is not None)
        if item is None:
            assert max(counts.values(), default=0) < counts[client] + 2
            return
        owner, _ = self.waiting[item]
        assert counts[owner] == max(counts.values()) >= counts[client] + 2
        assert item == self.line(owner)[-1]
        del self.waiting[item]

    @rule(client=CLIENTS, tokens=st.integers(0, 100))
    def charge(self, client: str, tokens: int) -> None:
        self.queue.charge(client, tokens)

    @invariant()
    def holds_what_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert all(item in self.queue for item in self.waiting)
        assert (self.queue.head() is None) == (not self.waiting)

    @invariant()
    def remembers_a_bounded_number_of_clients(self) -> None:
        assert self.queue.remembered <= len({owner for owner, _ in self.waiting.values()}) + 3


Turns.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestTurns = Turns.TestCase


@settings(deadline=None)
@given(costs=st.lists(st.tuples(CLIENTS, st.integers(1, 20)), min_size=5, max_size=80))
def test_clients_that_keep_waiting_are_served_alike(costs: list[tuple[str, int]]) -> None:
    queue: WaitingQueue[int] = WaitingQueue()
    cost_of = dict(enumerate(cost for _, cost in costs))
    waiting = Counter(client for client, _ in costs)
    for item, (client, _) in enumerate(costs):
        queue.push(item, client=client)
    served = dict.fromkeys(waiting, 0)
    while len(queue) and all(waiting.values()):  # until somebody has nothing to wait for any more
        item = queue.pop()
        client = costs[item][0]
        waiting[client] -= 1
        served[client] += cost_of[item]
        queue.charge(client, cost_of[item])
        assert max(served.values()) - min(served.values()) <= 20  # the largest single cost


@settings(deadline=None)
@given(past=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 500)), max_size=20), others=st.integers(1, 5))
def test_newcomer_is_next_but_for_one_turn_each_of_those_who_wait(past: list[tuple[str, int]], others: int) -> None:
    queue: WaitingQueue[str] = WaitingQueue()
    for number in range(20):
        for client in "abcde"[:others]:
            queue.push(f"{client}{number}", client=client)
    for client, tokens in past:
        queue.charge(client, tokens)
    queue.push("new", client="newcomer")
    turns = []
    for _ in range(others + 1):
        turns.append(queue.pop())
        queue.charge("newcomer" if turns[-1] == "new" else turns[-1][0], 1)
    assert "new" in turns


def test_a_pause_saves_nothing_up() -> None:
    queue: WaitingQueue[str] = WaitingQueue()
    queue.push("early", client="idle")
    assert queue.pop() == "early"
    for number in range(10):
        queue.push(f"busy{number}", client="busy")
    for _ in range(4):
        queue.pop()
        queue.charge("busy", 100)
    for number in range(6):
        queue.push(f"idle{number}", client="idle")
    turns = []
    for _ in range(8):
        item = queue.pop()
        turns.append(item[:4])
        queue.charge(item[:4], 100)
    assert turns.count("idle") == turns.count("busy") == 4


def test_newcomer_has_no_claim_to_what_others_got_before() -> None:
    queue: WaitingQueue[str] = WaitingQueue()
    for number in range(10):
        queue.push(f"here{number}", client="here")
    queue.charge("here", 1000)  # what it runs in the meantime
    for number in range(10):
        queue.push(f"come{number}", client="come")
    turns = []
    for _ in range(8):
        turns.append(queue.pop()[:4])
        queue.charge(turns[-1], 100)
    assert turns.count("here") == turns.count("come") == 4


def test_priority_is_no_way_past_another_client() -> None:
    queue: WaitingQueue[str] = WaitingQueue()
    for number in range(3):
        queue.push(f"loud{number}", client="loud", priority=100)
        queue.push(f"calm{number}", client="calm", priority=-100)
    turns = []
    for _ in range(6):
        turns.append(queue.pop()[:4])
        queue.charge(turns[-1], 10)
    assert turns == ["loud", "calm"] * 3


def test_item_waits_once() -> None:
    queue: WaitingQueue[str] = WaitingQueue()
    queue.push("x", client="a")
    with pytest.raises(ValueError, match="waiting already"):
        queue.push("x", client="b")
    assert queue.pop() == "x" and not queue.remove("x")
    with pytest.raises(IndexError):
        queue.pop()
