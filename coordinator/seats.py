"""What a pair of workers has room for: as of its last round, less what was placed there since.

The router places requests from any thread, the engine's thread takes them between two rounds and says what is left
then. Nothing is counted twice: what is published contains exactly what was taken before.
"""

from __future__ import annotations

import threading

from coordinator.placement import PairLoad
from coordinator.stream import Stream


class Seats:
    """``load``, ``place`` and ``withdraw`` are for any thread, the rest for the engine's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: PairLoad | None = None
        self._placed: list[Stream] = []
        self._taken: list[Stream] = []  # by the engine, and not contained in what is published yet

    @property
    def load(self) -> PairLoad | None:
        """What is held and left, what was placed included; None while nothing can run here."""
        with self._lock:
            load = self._published
            if load is not None:
                for stream in (*self._placed, *self._taken):
                    load = load.with_one_more(len(stream.generation.sequence.tokens))
            return load

    @property
    def placed(self) -> int:
        """Requests that the engine has not taken yet."""
        return len(self._placed)

    def place(self, stream: Stream) -> bool:
        """Put a request down for the engine; False when nothing can run here any more."""
        with self._lock:
            if self._published is None:
                return False
            self._placed.append(stream)
            return True

    def withdraw(self, stream: Stream) -> bool:
        """Take a request back; False when it is not here, or not any more."""
        with self._lock:
            if stream not in self._placed:
                return False
            self._placed.remove(stream)
            return True

    def publish(self, load: PairLoad | None) -> bool:
        """Say what the loop holds and has left; True when that has changed."""
        with self._lock:
            changed = load != self._published or bool(self._taken)
            self._published = load
            self._taken.clear()
            return changed

    def take(self) -> list[Stream]:
        """All requests that were placed, in their order."""
        with self._lock:
            placed, self._placed = self._placed, []
            self._taken += placed
            return placed
