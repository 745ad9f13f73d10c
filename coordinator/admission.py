"""Who may come in, and who is next: the bounds on everything that requests can make the coordinator keep.

A request is *active* from the moment it is let in until it has ended. Active requests are bounded, those that wait for
a slot stand in a fair queue, and texts that are being made into tokens are bounded as well, so that no client can fill
the memory by asking. What is asked beyond is refused, with an honest guess at when to come back.

The event loop lets in and out, the engine's thread asks who is next: everything happens under one lock.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from coordinator.retry_estimate import RetryEstimate
from coordinator.stream import Stream
from coordinator.waiting_queue import WaitingQueue
from qspec.errors import InvalidInput, QueueFull
from qspec.sequence import Sequence


class Admission:
    """See the module."""

    def __init__(self, max_active: int) -> None:
        """``max_active`` bounds the requests running and waiting together."""
        self._max_active = max_active
        self._lock = threading.Lock()
        self._queue: WaitingQueue[Stream] = WaitingQueue()
        self._active: dict[tuple[str, str], Stream] = {}  # by client and request id
        self._estimate = RetryEstimate()
        self._looked_at = 0

    # ---- the event loop ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests that are running or waiting."""
        return len(self._active)

    @property
    def streams(self) -> list[Stream]:
        """The active ones."""
        with self._lock:
            return list(self._active.values())

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """While a request's text is made into tokens; ``QueueFull`` when too many are."""
        if self._looked_at >= self._max_active:
            raise self.refusal(f"{self._looked_at} texts are being read already")
        self._looked_at += 1
        try:
            yield
        finally:
            self._looked_at -= 1

    def new_request_id(self) -> str:
        """An id for a request whose client chose none."""
        return f"request-{secrets.token_hex(8)}"

    def check(self, client: str, request_id: str | None) -> None:
        """Refuse early what ``enter`` would refuse now: nobody has to make tokens of its text."""
        with self._lock:
            self._check_id(client, request_id)
            if len(self._active) >= self._max_active and not self._queue.can_displace_for(client):
                raise self._full()

    def enter(self, stream: Stream) -> Stream | None:
        """Let a request in, to wait for its turn.

        Returns one that has to give way, because the queue is full and its client has more than its share of it; it has
        left. Raises ``QueueFull``, and ``InvalidInput`` for a request id that its client uses already.
        """
        with self._lock:
            self._check_id(stream.client, stream.request_id)
            displaced: Stream | None = None
            if len(self._active) >= self._max_active:
                displaced = self._queue.displace_for(stream.client)
                if displaced is None:
                    raise self._full()
                del self._active[displaced.client, displaced.request_id]
            self._active[stream.client, stream.request_id] = stream
            self._queue.push(stream, client=stream.client, priority=stream.priority)
            return displaced

    def refusal(self, reason: str) -> QueueFull:
        """The refusal of a request, with the time at which it should come back."""
        delay = self._estimate.refused(time.monotonic(), self._soonest_end_s())
        return QueueFull(f"{reason}: try again in {delay:.1f} s", delay)

    def leave(self, stream: Stream) -> bool:
        """A request has ended, however it did; False when it had left already."""
        with self._lock:
            if self._active.get((stream.client, stream.request_id)) is not stream:
                return False
            del self._active[stream.client, stream.request_id]
            self._queue.remove(stream)
            self._estimate.ended(time.monotonic())
            return True

    # ---- the engine's thread ----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return len(self._queue)

    def next(self, fits: Callable[[Sequence], bool]) -> Stream | None:
        """Take the request whose turn it is, if there is one and it ``fits``; nobody passes one that does not fit."""
        with self._lock:
            stream = self._queue.head()
            if stream is None or not fits(stream.generation.sequence):
                return None
            self._queue.pop()
            self._queue.charge(stream.client, stream.generation.sequence.prompt_len)
            return stream

    def charge(self, tokens: Mapping[str, int]) -> None:
        """Count tokens that were made, by client."""
        with self._lock:
            for client, count in tokens.items():
                self._queue.charge(client, count)

    # ---- under the lock ---------------------------------------------------------------------------------------------

    def _check_id(self, client: str, request_id: str | None) -> None:
        if request_id is not None and (client, request_id) in self._active:
            raise InvalidInput.field(
                "request_id", f"{request_id} is in use: choose another, or wait until that request has ended")

    def _full(self) -> QueueFull:
        return self.refusal(f"{len(self._active)} requests are running or waiting already")

    def _soonest_end_s(self) -> float | None:
        """Seconds that the request nearest to its end still needs, should it make all its tokens."""
        sequences = [stream.generation.sequence for stream in self._active.values()]
        needs = [
            one.remaining * one.stats.round_s / made
            for one in sequences
            if (made := len(one.tokens) - one.prompt_len) > 0
        ]
        return min(needs, default=None)
