"""From the engine's thread to the event loop: which streams have something new.

However far the event loop is behind, two calls at most are on their way to it, the second where a reader would be cut
off otherwise, and a stream is named in them once: nothing piles up here. What is new is in the streams themselves,
which are bounded.

A message to a client costs the event loop some tens of microseconds, for which the engine's thread waits, and with it
the workers. So the event loop is woken no sooner than twice as long after the last time as that cost it: what a stream
has got meanwhile goes in one message. For a few streams that is a fraction of a round; for many on a fast GPU two
rounds become one message.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable

from coordinator.stream import Stream

_PAUSE = 2.0
"""How long after it was woken the event loop is left alone, as a multiple of the CPU time that it has taken since."""
_LONGEST_PAUSE_S = 0.05
"""Whatever else kept it busy."""


class Deliveries:
    """``tell`` from any thread; ``settle`` is called on the event loop for every stream that is complete."""

    def __init__(
        self, event_loop: asyncio.AbstractEventLoop, settle: Callable[[Stream], object],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """``cpu_clock``: seconds that the calling thread has computed."""
        self._event_loop = event_loop
        self._settle = settle
        self._cpu_clock = cpu_clock
        self._lock = threading.Lock()
        self._changed: set[Stream] = set()
        self._pressed = False  # a call is on its way that does not wait
        self._woke_at = 0.0  # on the event loop's clock
        self._cpu_at = 0.0  # what it had computed then
        self._waiting: asyncio.TimerHandle | None = None

    def tell(self, streams: Iterable[Stream]) -> None:
        """Wake the readers of these streams."""
        with self._lock:
            called, streams = bool(self._changed), tuple(streams)
            self._changed.update(streams)
            if not self._changed or self._event_loop.is_closed():
                return
            if not self._pressed and any(stream.pressed for stream in streams):
                self._pressed = True
                self._event_loop.call_soon_threadsafe(self.wake)
            elif not called:
                self._event_loop.call_soon_threadsafe(self._wake_in_time)

    def wake(self) -> None:
        """Do it now; on the event loop."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._woke_at, self._cpu_at = self._event_loop.time(), self._cpu_clock()
        with self._lock:
            changed, self._changed, self._pressed = self._changed, set(), False
        for stream in changed:
            stream.wake()
            if stream.complete:
                self._settle(stream)

    def _wake_in_time(self) -> None:
        """Do it when the event loop has been left alone for long enough."""
        pause = min(_PAUSE * (self._cpu_clock() - self._cpu_at), _LONGEST_PAUSE_S)
        left = self._woke_at + pause - self._event_loop.time()
        if left <= 0:
            self.wake()
        elif self._waiting is None:
            self._waiting = self._event_loop.call_later(left, self.wake)
