"""What a pair of workers has room for: as of its last round, less what was placed there since.

The router places requests from any thread, the engine's thread takes them between two rounds and says what is left
then. Nothing is counted twice: what is published contains exactly what was taken before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.placement import PairLoad
from coordinator.stream import Stream


@dataclass(frozen=True, slots=True)
class _Placed:
    """A request, and what it takes: noted at once, since its sequence soon belongs to the engine's thread."""

    stream: Stream
    tokens: int
    names: tuple[bytes, ...]


class Seats:
    """``load``, ``place`` and ``withdraw`` are for any thread, the rest for the engine's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._published: PairLoad | None = None
        self._load: PairLoad | None = None  # what is published, less what was placed and taken
        self._placed: list[_Placed] = []
        self._taken: list[_Placed] = []  # by the engine, and not contained in what is published yet

    @property
    def load(self) -> PairLoad | None:
        """What is held and left, what was placed included; None while nothing can run here."""
        with self._lock:
            return self._load

    @property
    def placed(self) -> int:
        """Requests that the engine has not taken yet."""
        return len(self._placed)

    def place(self, stream: Stream, names: Sequence[bytes]) -> bool:
        """Put a request, whose blocks have these names, down for the engine; False when nothing can run here any more.
        """
        with self._lock:
            if self._load is None:
                return False
            placed = _Placed(stream, len(stream.generation.sequence.tokens), tuple(names))
            self._placed.append(placed)
            self._load = self._load.with_one_more(placed.tokens, placed.names)
            return True

    def withdraw(self, stream: Stream) -> bool:
        """Take a request back; False when it is not here, or not any more."""
        with self._lock:
            left = [placed for placed in self._placed if placed.stream is not stream]
            if len(left) == len(self._placed):
                return False
            self._placed = left
            self._reckon()
            return True

    def publish(self, load: PairLoad | None) -> bool:
        """Say what the loop holds and has left; True when that has changed."""
        with self._lock:
            changed = load != self._published or bool(self._taken)
            self._published = load
            self._taken.clear()
            self._reckon()
            return changed

    def take(self) -> list[Stream]:
        """All requests that were placed, in their order."""
        with self._lock:
            placed, self._placed = self._placed, []
            self._taken += placed
            return [one.stream for one in placed]

    def _reckon(self) -> None:
        load = self._published
        if load is not None:
            for placed in (*self._taken, *self._placed):
                load = load.with_one_more(placed.tokens, placed.names)
        self._load = load
