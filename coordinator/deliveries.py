"""From the engine's thread to the event loop: which streams have something new.

However far the event loop is behind, one call at most is on its way to it, and a stream is named in it once: nothing
piles up here. What is new is in the streams themselves, which are bounded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

from coordinator.stream import Stream


class Deliveries:
    """``tell`` from any thread; ``settle`` is called on the event loop for every stream that is complete."""

    def __init__(self, event_loop: asyncio.AbstractEventLoop, settle: Callable[[Stream], object]) -> None:
        self._event_loop = event_loop
        self._settle = settle
        self._lock = threading.Lock()
        self._changed: set[Stream] = set()

    def tell(self, streams: Iterable[Stream]) -> None:
        """Wake the readers of these streams."""
        with self._lock:
            called = bool(self._changed)
            self._changed.update(streams)
            if self._changed and not called and not self._event_loop.is_closed():
                self._event_loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Do it now; on the event loop."""
        with self._lock:
            changed, self._changed = self._changed, set()
        for stream in changed:
            stream.wake()
            if stream.complete:
                self._settle(stream)
