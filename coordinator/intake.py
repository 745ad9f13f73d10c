"""The event loop's side of the engine: requests come in, and leave it for whatever reason there is.

A request leaves when its text has ended, its client cancels, its deadline passes, its place goes to another client, or
the server goes. In each case it gives up its place here at once, and what it holds of the workers with the next round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from coordinator.admission import Admission
from coordinator.deliveries import Deliveries
from coordinator.stream import Stream
from coordinator.telemetry import Telemetry
from qspec.errors import DeadlineExceeded, QspecError


class Intake:
    """See the module; everything but ``deliveries.tell`` and ``admission.next`` is for the event loop."""

    def __init__(
        self, event_loop: asyncio.AbstractEventLoop, admission: Admission, drop: Callable[[Stream], None],
        telemetry: Telemetry,
    ) -> None:
        """``drop`` has the engine's thread forget a stream that left early; ``telemetry`` is told of every end."""
        self._event_loop = event_loop
        self._admission = admission
        self._drop = drop
        self._telemetry = telemetry
        self._timers: dict[Stream, asyncio.TimerHandle] = {}
        self.deliveries = Deliveries(event_loop, self._settle)

    def enter(self, streams: Sequence[Stream], deadline: float | None) -> None:
        """Let a request in, all its choices or none; ``deadline`` by the event loop's clock.

        Raises what ``Admission.enter`` raises.
        """
        now = self._event_loop.time()
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("the request's deadline passed before it could wait for its turn")
        self.deliveries.wake()  # texts that have ended have no place any more, though nobody may have been told yet
        displaced = self._admission.enter(streams)
        if displaced is not None:
            self._end(displaced, self._admission.refusal("the queue is full, and a client with less in it came"))
            self._telemetry.text_ended(displaced)  # it has lost its place already
        if deadline is not None:
            for stream in streams:
                self._timers[stream] = self._event_loop.call_at(deadline, self._expire, stream, now)

    def cancel(self, stream: Stream) -> None:
        """The client does not want the text any more."""
        if self._settle(stream):
            self._drop(stream)

    def abandon(self, error: QspecError) -> None:
        """End every stream with ``error`` now, without waiting for the round in progress."""
        for stream in self._admission.streams:
            self._end(stream, error)

    def _expire(self, stream: Stream, since: float) -> None:
        sequence = stream.generation.sequence
        made = len(sequence.tokens) - sequence.prompt_len
        what = f"after {made} of at most {sequence.max_tokens} tokens" if made else "before its first token"
        self._end(stream, DeadlineExceeded(
            f"the request's deadline passed {what}, {self._event_loop.time() - since:.1f} s after it was queued"))

    def _end(self, stream: Stream, error: QspecError) -> None:
        stream.fail(error)
        stream.wake()
        self.cancel(stream)

    def _settle(self, stream: Stream) -> bool:
        """The stream holds no place any more; False when that was known."""
        timer = self._timers.pop(stream, None)
        if timer is not None:
            timer.cancel()
        left = self._admission.leave(stream)
        if left:
            self._telemetry.text_ended(stream)
        return left
