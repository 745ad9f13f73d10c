"""Who may come in, and who is next: the bounds on everything that requests can make the coordinator keep.

A request is *active* from the moment it is let in until it has ended. Active requests are bounded, those that wait for
a slot stand in a fair queue, and texts that are being made into tokens are bounded as well, so that no client can fill
the memory by asking. What is asked beyond is refused, with an honest guess at when to come back.

The event loop lets in and out, the router asks who is next: everything happens under one lock.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from coordinator.retry_estimate import RetryEstimate
from coordinator.stream import Stream
from coordinator.waiting_queue import WaitingQueue
from qspec.errors import InvalidInput, QueueFull
from qspec.sequence import Sequence as Tokens


class Admission:
    """See the module."""

    def __init__(self, max_active: int) -> None:
        """``max_active`` bounds the requests running and waiting together."""
        self._max_active = max_active
        self._lock = threading.Lock()
        self._queue: WaitingQueue[Stream] = WaitingQueue()
        self._active: dict[Stream, None] = {}  # in the order of arrival
        self._ids: Counter[tuple[str, str]] = Counter()  # places by client and request id
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
            return list(self._active)

    def resize(self, max_active: int) -> None:
        """Bound the active requests anew; those that are active stay."""
        with self._lock:
            self._max_active = max_active

    def is_active(self, stream: Stream) -> bool:
        """Whether a request was let in and has not ended."""
        with self._lock:
            return stream in self._active

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

    def check(self, client: str, request_id: str | None, choices: int = 1) -> None:
        """Refuse early what ``enter`` would refuse now: nobody has to make tokens of its text."""
        with self._lock:
            self._check_id(client, request_id)
            self._check_choices(choices)
            if self._lacks(choices) and not (choices == 1 and self._queue.can_displace_for(client)):
                raise self._full()

    def enter(self, streams: Sequence[Stream]) -> Stream | None:
        """Let a request in, to wait for its turn; each of its choices takes a place, and all get one or none does.

        Returns one that has to give way, because the queue is full and its client has more than its share of it; it has
        left. A request of several choices drives nobody out. Raises ``QueueFull``, and ``InvalidInput`` for a request
        id that its client uses already and for more choices than there are places.
        """
        client, request_id = streams[0].client, streams[0].request_id
        with self._lock:
            self._check_id(client, request_id)
            self._check_choices(len(streams))
            displaced: Stream | None = None
            if self._lacks(len(streams)):
                displaced = self._queue.displace_for(client) if len(streams) == 1 else None
                if displaced is None:
                    raise self._full()
                self._forget(displaced)
            for stream in streams:
                self._active[stream] = None
                self._ids[client, request_id] += 1
                self._queue.push(stream, client=client, priority=stream.priority)
            return displaced

    def refusal(self, reason: str) -> QueueFull:
        """The refusal of a request, with the time at which it should come back."""
        delay = self._estimate.refused(time.monotonic(), self._soonest_end_s())
        return QueueFull(f"{reason}: try again in {delay:.1f} s", delay)

    def leave(self, stream: Stream) -> bool:
        """A request has ended, however it did; False when it had left already."""
        with self._lock:
            if stream not in self._active:
                return False
            self._forget(stream)
            self._queue.remove(stream)
            self._estimate.ended(time.monotonic())
            return True

    # ---- the router, in any thread -----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return len(self._queue)

    def next(self, fits: Callable[[Tokens], bool]) -> Stream | None:
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
        if request_id is not None and (client, request_id) in self._ids:
            raise InvalidInput.field(
                "request_id", f"{request_id} is in use: choose another, or wait until that request has ended")

    def _check_choices(self, choices: int) -> None:
        if choices > self._max_active:
            raise InvalidInput.field("n", f"this server has room for {self._max_active} texts at once, got {choices}")

    def _lacks(self, places: int) -> bool:
        return len(self._active) + places > self._max_active

    def _forget(self, stream: Stream) -> None:
        del self._active[stream]
        key = stream.client, stream.request_id
        self._ids[key] -= 1
        if not self._ids[key]:
            del self._ids[key]

    def _full(self) -> QueueFull:
        return self.refusal(f"{len(self._active)} requests are running or waiting already")

    def _soonest_end_s(self) -> float | None:
        """Seconds that the request nearest to its end still needs, should it make all its tokens."""
        sequences = [stream.generation.sequence for stream in self._active]
        needs = [
            one.remaining * one.stats.round_s / made
            for one in sequences
            if (made := len(one.tokens) - one.prompt_len) > 0
        ]
        return min(needs, default=None)
