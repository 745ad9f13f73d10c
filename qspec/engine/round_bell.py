"""A bell in the arena: one worker rings when it has left a round's part there, the other waits for that.

What is left comes first, then the round's number, then the bell; whoever waits reads in the opposite order. The bell is
the ringer's, so ``give_up``, which any thread of the waiting process may call, does not ring: it is noticed within
``_LOOK_AGAIN_S``.

A processor that has gone to sleep takes 0.1 to 0.5 ms to wake, twice a round, where rounds take 4 to 15. So a worker
whose processor has nothing else to do is up before the bell usually rings, and only naps from then on (``watches``).
Where the two workers compute on the same cores the other one would pay for that. It does nap: a loop that gives the
interpreter away and takes it back at once keeps every other thread of the process from it, the one that gets the next
question among them, and that cost more than it gained.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qspec.engine.batch_state import numbers
from qspec.engine.usual_wait import UsualWait
from qspec.memory.attachment import Arena
from qspec.memory.futex import futex_wait, futex_wake

_LOOK_AGAIN_S = 0.05
_UP_BEFORE_S, _WATCHES_FOR_S = 0.001, 0.004
"""How long before the bell usually rings somebody who watches is up, and for how long."""
_NAP_S = 0.00002
"""Less than what processors are kept awake for before they halt."""
_REMEMBERED = 8
"""Rounds that were given up and may not have begun."""


class RoundBell:
    """One end of it; ``region`` is ``[1]`` int32."""

    def __init__(self, arena: Arena, region: str, *, watches: bool = False) -> None:
        self._bell, self._usual = numbers(arena, region), UsualWait() if watches else None
        self._address = self._bell.ctypes.data
        self._given_up: tuple[int, ...] = ()

    def ring(self) -> None:
        """Wake whoever waits."""
        self._bell[0] += 1
        futex_wake(self._address)

    def wait(self, ready: Callable[[], bool], round_number: int, timeout_s: float) -> bool:
        """Wait until it is ``ready``; False when it is not in time, or when ``round_number`` is given up."""
        began = time.monotonic()
        end = began + timeout_s
        up = end if self._usual is None else began + max(self._usual.shortest - _UP_BEFORE_S, 0.0)
        while (now := time.monotonic()) < end and round_number not in self._given_up:
            bell = int(self._bell[0])
            if ready():
                if self._usual is not None:
                    self._usual.observe(now - began)
                return True
            sleep_s = up - now if now < up else _NAP_S if now < up + _WATCHES_FOR_S else end - now
            futex_wait(self._address, bell & 0xFFFFFFFF, min(sleep_s, _LOOK_AGAIN_S))
        return False

    def give_up(self, round_number: int) -> None:
        """Nobody need wait in this round, which may not have begun."""
        self._given_up = (*self._given_up[1 - _REMEMBERED :], round_number)
