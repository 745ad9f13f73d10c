"""The engine: one thread that owns the decoding loop, between the event loop that serves requests and the workers.

Nothing else touches the ``SpeculationLoop``. The event loop posts commands (start, cancel), the stack posts workers
(attach, replace); both land in one queue that the thread empties between two rounds, so a cancelled request gives its
slot back with the next batch. What a round commits goes back to the event loop in a single call.

A lost drafter costs speed only. A lost verifier pauses every stream until ``attach_verifier`` brings another one; the
loop then prefills each sequence again from its committed tokens, and the streams go on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

from coordinator.generation import Generation, Piece, TextSource
from coordinator.requests import ValidRequest
from coordinator.stream import Stream
from qspec.cost_calibration import calibrate as calibrate_costs
from qspec.errors import QspecError, WorkerLost
from qspec.interfaces import Drafter, DrafterDescription, Progress, Verifier, VerifierDescription
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop

logger = logging.getLogger(__name__)
T = TypeVar("T")
COSTS_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Measured costs in seconds: ``verify_s[k]`` of a verify call over k + 1 rows, and of drafting one token."""

    verify_s: tuple[float, ...] = ()
    draft_step_s: float = 0.0


class QueueFull(QspecError):
    """No room for another waiting request; ``retry_after_s`` is a guess at when there will be."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"{waiting} requests are waiting already: try again in {retry_after_s:g} s")


class EngineFailed(QspecError):
    """The decoding loop failed in a way that it is not meant to; the stream cannot go on."""


class EngineObserver(Protocol):
    """Who is told what happens to the workers; called from the engine's thread, must return at once."""

    def verifier_lost(self, verifier: Verifier, error: QspecError) -> None:
        """This verifier is gone; every stream pauses until another is attached."""
        ...

    def drafter_lost(self, drafter: Drafter, error: QspecError) -> None:
        """This drafter is gone; rounds go on without drafts."""
        ...

    def engine_failed(self, error: BaseException) -> None:
        """A bug: the engine has stopped and every stream was failed."""
        ...


class Engine:
    """Runs requests; see the module. ``start`` before anything else, ``close`` at the end."""

    def __init__(
        self,
        loop: SpeculationLoop,
        *,
        eos_token_ids: frozenset[int],
        text_source: Callable[[], TextSource],
        observer: EngineObserver,
        max_active: int,
    ) -> None:
        """``max_active`` bounds the requests running and waiting together; ``text_source`` makes a detokeniser."""
        self._loop = loop
        self._eos_token_ids = eos_token_ids
        self._text_source = text_source
        self._observer = observer
        self._max_active = max_active
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._active: set[Stream] = set()  # changed on the event loop only
        self._streams: dict[str, Stream] = {}  # by request id; engine's thread only
        self._verifier: Verifier | None = None
        self._drafter: Drafter | None = None
        self._costs = Costs()
        self._costs_taken = 0.0
        self._closing = False
        self._failure: BaseException | None = None
        self._ended = False
        self._ending = threading.Lock()  # a request comes before the end, and is told, or after it, and is refused
        self._request_ids = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, event_loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; streams are delivered to ``event_loop``."""
        self._event_loop = event_loop
        self._thread.start()

    def close(self) -> None:
        """Stop after the round in progress; open streams end with ``WorkerLost``."""
        self._post(self._stop)
        self._thread.join()

    @property
    def active(self) -> int:
        """Requests that are running or waiting."""
        return len(self._active)

    def submit(self, request: ValidRequest) -> Stream:
        """Queue a request; to be called on the event loop. Raises ``QueueFull`` when there is no room for it."""
        if len(self._active) >= self._max_active:
            raise QueueFull(len(self._active), retry_after_s=1.0)
        sequence = Sequence(
            request_id=f"request-{next(self._request_ids)}",
            prompt=list(request.prompt),
            max_tokens=request.max_tokens,
            sampling=request.sampling,
            eos_token_ids=self._eos_token_ids,
            draft_length=request.draft_length,
        )
        stream = Stream(Generation(sequence, self._text_source(), request.stop), self._cancel)
        with self._ending:
            if self._ended:
                raise EngineFailed("the engine has stopped") from self._failure
            self._post(lambda: self._add(stream))
        self._active.add(stream)
        return stream

    async def drain(self) -> None:
        """Wait until no stream is running or waiting."""
        while self._active:
            await asyncio.sleep(0.02)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._loop.running

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return self._loop.waiting

    @property
    def costs(self) -> Costs:
        """What rounds cost, as measured at warm-up and since; at most a second old while there is work."""
        return self._costs

    def attach_verifier(self, verifier: Verifier) -> VerifierDescription:
        """Use this verifier from the next round on; blocks until the loop has described it, raises what that raises.

        A drafter has to be attached again afterwards.
        """
        def attach() -> VerifierDescription:
            self._verifier = self._drafter = None
            description = self._loop.attach_verifier(verifier)
            self._verifier = verifier
            return description
        return self._call(attach)

    def attach_drafter(self, drafter: Drafter) -> DrafterDescription:
        """Use this drafter from the next round on; blocks until it is attached, raises what that raises."""
        def attach() -> DrafterDescription:
            self._drafter = None
            description = self._loop.attach_drafter(drafter)
            self._drafter = drafter
            return description
        return self._call(attach)

    def detach_verifier(self) -> None:
        """Pause: the verifier is known to be gone, perhaps before a round has noticed."""
        def detach() -> None:
            self._verifier = None
        self._call(detach)

    def calibrate(self, progress: Progress) -> None:
        """Warm-up rounds that fill the cost table; blocks, raises what they raise."""
        def calibrate() -> None:
            calibrate_costs(self._loop, progress)
            self._take_costs()
        self._call(calibrate)

    def _cancel(self, stream: Stream) -> None:
        if stream in self._active:
            self._active.discard(stream)
            self._post(lambda: self._drop(stream))

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.put(command)

    def _call(self, command: Callable[[], T]) -> T:
        """Run a command on the engine's thread and wait for its result."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(command())
            except BaseException as error:  # noqa: BLE001  (the caller's to deal with)
                result.set_exception(error)

        self._post(run)
        while not wait([result], timeout=0.5).done:
            if not self._thread.is_alive() and not result.done():
                raise EngineFailed("the engine has stopped") from self._failure
        return result.result()

    # Everything below runs on the engine's thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey_commands()
                if self._has_work:
                    self._round()
        except BaseException as error:
            logger.exception("the decoding loop failed")
            self._failure = error
            self._end(EngineFailed("the decoding loop failed: see the server's log"))
            self._observer.engine_failed(error)
        else:
            self._end(WorkerLost("the server is shutting down"))

    def _end(self, error: QspecError) -> None:
        """Take no more requests, and fail those that came."""
        with self._ending:
            self._ended = True
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                with contextlib.suppress(Exception):  # the loop may be in no state to obey
                    command()
        failed = list(self._streams.values())
        self._streams.clear()
        self._deliver([(stream, error) for stream in failed])

    def _obey_commands(self) -> None:
        """Empty the queue; wait for a command when there is nothing else to do."""
        idle = not (self._has_work)
        while not self._closing:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return
            command()
            idle = idle and not (self._has_work)

    def _round(self) -> None:
        assert self._verifier is not None
        try:
            commits = self._loop.step()
        except QspecError as error:  # dead, hung, of another epoch, or talking nonsense
            verifier, self._verifier = self._verifier, None
            self._observer.verifier_lost(verifier, error)
            return
        deliveries: list[tuple[Stream, Piece]] = []
        for commit in commits:
            stream = self._streams.get(commit.sequence.request_id)
            if stream is None:
                continue  # dropped since
            piece = stream.generation.take(commit.token_ids)
            deliveries.append((stream, piece))
            if piece.ending is not None:
                del self._streams[commit.sequence.request_id]
                if commit.sequence.finish is None:  # a stop string: the loop does not know text
                    self._loop.remove(commit.sequence)
        self._deliver(deliveries)
        if self._drafter is not None and not self._loop.drafter_attached:
            drafter, self._drafter = self._drafter, None
            self._observer.drafter_lost(drafter, self._loop.drafter_error or WorkerLost("the drafter is gone"))
        if time.monotonic() - self._costs_taken > COSTS_EVERY_S:
            self._take_costs()

    @property
    def _has_work(self) -> bool:
        return not self._closing and self._verifier is not None and self._loop.has_work

    def _take_costs(self) -> None:
        policy = self._loop.policy
        self._costs_taken = time.monotonic()
        self._costs = Costs(
            verify_s=tuple(policy.costs.verify_seconds(rows) for rows in range(1, policy.longest + 2)),
            draft_step_s=policy.costs.draft_seconds([1]) if policy.costs.known else 0.0,
        )

    def _add(self, stream: Stream) -> None:
        sequence = stream.generation.sequence
        self._streams[sequence.request_id] = stream
        self._loop.add(sequence)

    def _drop(self, stream: Stream) -> None:
        """Forget a stream; one that has not ended is taken out of the loop."""
        sequence = stream.generation.sequence
        if self._streams.pop(sequence.request_id, None) is not None:
            self._loop.remove(sequence)

    def _stop(self) -> None:
        self._closing = True

    def _deliver(self, deliveries: list[tuple[Stream, Piece]] | list[tuple[Stream, QspecError]]) -> None:
        def put() -> None:
            for stream, piece in deliveries:
                stream.pieces.put_nowait(piece)
                if isinstance(piece, QspecError) or piece.ending is not None:
                    self._active.discard(stream)

        event_loop = self._event_loop
        if deliveries and event_loop is not None and not event_loop.is_closed():
            event_loop.call_soon_threadsafe(put)
