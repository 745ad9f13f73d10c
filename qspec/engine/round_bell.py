"""A bell in the arena: one worker rings when it has left a round's part there, the other waits for that.

What is left comes first, then the round's number, then the bell; whoever waits reads in the opposite order. The bell is
the ringer's, so ``give_up``, which any thread of the waiting process may call, does not ring: it is noticed within
``_LOOK_AGAIN_S``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from qspec.engine.batch_state import numbers
from qspec.memory.attachment import Arena
from qspec.memory.futex import futex_wait, futex_wake

_LOOK_AGAIN_S = 0.05
_REMEMBERED = 8
"""Rounds that were given up and may not have begun."""


class RoundBell:
    """One end of it; ``region`` is ``[1]`` int32."""

    def __init__(self, arena: Arena, region: str) -> None:
        self._bell = numbers(arena, region)
        self._address = self._bell.ctypes.data
        self._given_up: tuple[int, ...] = ()

    def ring(self) -> None:
        """Wake whoever waits."""
        self._bell[0] += 1
        futex_wake(self._address)

    def wait(self, ready: Callable[[], bool], round_number: int, timeout_s: float) -> bool:
        """Wait until it is ``ready``; False when it is not in time, or when ``round_number`` is given up."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0 and round_number not in self._given_up:
            bell = int(self._bell[0])
            if ready():
                return True
            futex_wait(self._address, bell & 0xFFFFFFFF, min(left, _LOOK_AGAIN_S))
        return False

    def give_up(self, round_number: int) -> None:
        """Nobody need wait in this round, which may not have begun."""
        self._given_up = (*self._given_up[1 - _REMEMBERED :], round_number)
