"""When the event loop is told that streams have something new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from coordinator.deliveries import Deliveries


@dataclass
class Timer:
    """A call to come."""

    when: float
    call: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop by hand: ``now`` is its clock, ``cpu`` what it has computed."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 7.0
        self.soon: list[Callable[[], None]] = []
        self.later: list[Timer] = []

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now + delay, call)
        self.later.append(timer)
        return timer

    def pass_time(self, seconds: float, cpu: float = 0.0) -> None:
        """Let time go by, of which so much was computed."""
        self.now += seconds
        self.cpu += cpu
        due = [timer for timer in self.later if timer.when <= self.now and not timer.cancelled]
        self.later = [timer for timer in self.later if timer.when > self.now and not timer.cancelled]
        for timer in due:
            timer.call()


class Woken:
    """Counts how often it was woken."""

    complete = pressed = False

    def __init__(self) -> None:
        self.times = 0

    def wake(self) -> None:
        self.times += 1


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def deliveries(loop: Loop) -> Deliveries:
    return Deliveries(loop, lambda _: None, lambda: loop.cpu)  # type: ignore[arg-type]


def tell(loop: Loop, deliveries: Deliveries, *streams: Woken) -> None:
    """As the engine's thread does; what it has called is called at once."""
    deliveries.tell(streams)  # type: ignore[arg-type]
    soon, loop.soon = loop.soon, []
    for call in soon:
        call()


def test_an_idle_event_loop_is_told_at_once(loop: Loop, deliveries: Deliveries) -> None:
    one = Woken()
    for count in (1, 2, 3):
        tell(loop, deliveries, one)
        assert one.times == count and not loop.later
        loop.pass_time(0.004, cpu=0.001)


def test_a_busy_one_is_left_alone_for_twice_what_the_last_time_cost(loop: Loop, deliveries: Deliveries) -> None:
    one, other = Woken(), Woken()
    tell(loop, deliveries, one)
    loop.pass_time(0.005, cpu=0.004)
    tell(loop, deliveries, one)
    tell(loop, deliveries, one, other)
    assert (one.times, other.times) == (1, 0)
    loop.pass_time(0.002)
    assert (one.times, other.times) == (1, 0)
    loop.pass_time(0.0015)  # 8.5 ms after it was woken
    assert (one.times, other.times) == (2, 1) and not loop.later
    loop.pass_time(0.009, cpu=0.004)
    tell(loop, deliveries, other)
    assert other.times == 2


def test_whatever_else_kept_it_busy_nobody_waits_long(loop: Loop, deliveries: Deliveries) -> None:
    one = Woken()
    tell(loop, deliveries, one)
    loop.pass_time(0.01, cpu=3.0)
    tell(loop, deliveries, one)
    loop.pass_time(0.039)
    assert one.times == 1
    loop.pass_time(0.0015)
    assert one.times == 2


def test_what_cannot_wait_is_done_now(loop: Loop, deliveries: Deliveries) -> None:
    one = Woken()
    tell(loop, deliveries, one)
    loop.pass_time(0.001, cpu=0.01)
    tell(loop, deliveries, one)
    deliveries.wake()
    assert one.times == 2
    loop.pass_time(0.001, cpu=0.01)
    tell(loop, deliveries, one)
    loop.pass_time(0.0185)  # when the first call was due
    assert one.times == 2
    loop.pass_time(0.001)
    assert one.times == 3


def test_a_reader_that_would_be_cut_off_does_not_wait(loop: Loop, deliveries: Deliveries) -> None:
    one, other = Woken(), Woken()
    tell(loop, deliveries, one)
    loop.pass_time(0.001, cpu=0.01)
    tell(loop, deliveries, other)
    one.pressed = True
    deliveries.tell((one,))  # type: ignore[arg-type]
    deliveries.tell((one,))  # type: ignore[arg-type]
    assert len(loop.soon) == 1, "one call at a time"
    tell(loop, deliveries, one)
    assert (one.times, other.times) == (2, 1)
