"""Who watches is up before the bell rings, and asleep when it does not ring for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from qspec.engine import round_bell
from qspec.engine.round_bell import RoundBell
from qspec.engine.usual_wait import UsualWait
from qspec.memory.arena import HostArena
from qspec.memory.futex import FUTEX_AVAILABLE, futex_wait
from qspec.memory.layout import RegionSpec

needs_futex = pytest.mark.skipif(not FUTEX_AVAILABLE, reason="no futex on this machine")
SPECS = [RegionSpec("weights", torch.int64, (1,)), RegionSpec("bell", torch.int32, (1,))]


@pytest.fixture
def arena() -> Iterator[HostArena]:
    created = HostArena.create(SPECS, epoch=1, fingerprint="f")
    yield created
    created.close()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long it was slept at most, each time."""
    times: list[float] = []

    def sleep(address: int, value: int, timeout_s: float) -> None:
        times.append(timeout_s)
        futex_wait(address, value, timeout_s)

    monkeypatch.setattr(round_bell, "futex_wait", sleep)
    return times


def test_the_shortest_of_the_last_waits_counts() -> None:
    usual = UsualWait()
    assert usual.shortest == 0.0
    for seconds in (0.1, *[0.3] * 7):
        usual.observe(seconds)
    assert usual.shortest == 0.1
    usual.observe(0.2)
    assert usual.shortest == 0.2


@needs_futex
def test_whoever_does_not_watch_sleeps_all_the_time(arena: HostArena, slept: list[float]) -> None:
    assert not RoundBell(arena, "bell").wait(lambda: False, 1, 0.02)
    assert 1 <= len(slept) < 5


@needs_futex
def test_whoever_watches_sleeps_until_shortly_before_the_usual_time_and_again_long_after_it(
    arena: HostArena, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_bell, "_UP_BEFORE_S", 0.01)
    monkeypatch.setattr(round_bell, "_WATCHES_FOR_S", 0.02)
    bell = RoundBell(arena, "bell", watches=True)
    for _ in range(8):
        rung = time.monotonic() + 0.03
        assert bell.wait(lambda rung=rung: time.monotonic() >= rung, 1, 1.0)
    slept.clear()
    assert not bell.wait(lambda: False, 1, 0.1)
    before, *naps = slept
    assert 0.015 < before < 0.09
    assert sum(nap < 0.001 for nap in naps) > 5
    assert any(later > 0.02 for later in naps)


@needs_futex
@pytest.mark.parametrize("watches", [False, True])
def test_a_bell_is_heard_and_giving_up_is_noticed(arena: HostArena, watches: bool) -> None:
    ringer, waiting = RoundBell(arena, "bell"), RoundBell(arena, "bell", watches=watches)
    left = arena.tensor("weights")
    for round_number in range(1, 20):
        def put(number: int = round_number) -> None:
            time.sleep(0.002)
            left[0] = number
            ringer.ring()

        thread = threading.Thread(target=put)
        thread.start()
        assert waiting.wait(lambda number=round_number: int(left[0]) == number, round_number, 10.0)
        thread.join()
    threading.Timer(0.01, waiting.give_up, [99]).start()
    began = time.monotonic()
    assert not waiting.wait(lambda: False, 99, 10.0)
    assert time.monotonic() - began < 5.0
