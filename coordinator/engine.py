"""The engine: one thread that owns the decoding loop, between the event loop that serves requests and the workers.

Nothing else touches the ``SpeculationLoop``. Requests wait in ``Admission`` until the loop has room for the next one.
The event loop posts what is to be dropped, the stack posts workers (attach, replace); both land in one queue that the
thread empties between two rounds, so a request that was cancelled, is past its deadline or does not read gives its slot
back with the next batch. What a round commits goes to the streams, and the event loop is told in a single call.

Workers see batches of many requests, never a request: a deadline reaches them as a release in the next batch, and every
batch has a time limit of its own (``coordinator.stack``).

A lost drafter costs speed only. A lost verifier pauses every stream until ``attach_verifier`` brings another one; the
loop then prefills each sequence again from its committed tokens, and the streams go on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from coordinator.admission import Admission
from coordinator.choices import Choices
from coordinator.command_queue import CommandQueue, ThreadEnded
from coordinator.engine_observer import Costs, EngineObserver
from coordinator.generation import Generation, TextSource
from coordinator.intake import Intake
from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.request_times import RequestTimes
from coordinator.stream import MAX_BUFFERED_TOKENS, UNREAD_S, Stream
from coordinator.telemetry import Telemetry
from coordinator.tracing.tracer import UNTRACED_CALL, CallTrace
from coordinator.valid_request import ValidRequest
from qspec.cost_calibration import calibrate as calibrate_costs
from qspec.errors import QspecError, Unavailable, WorkerLost
from qspec.interfaces import Drafter, DrafterDescription, Progress, Verifier, VerifierDescription
from qspec.sequence import Sequence
from qspec.speculation import SpeculationLoop

logger = logging.getLogger(__name__)
T = TypeVar("T")
COSTS_EVERY_S = 1.0
RETRY_ELSEWHERE_S = 5.0
"""Seconds after which to ask again at the address of a server that goes: its successor has to load a model."""


class EngineFailed(QspecError):
    """The decoding loop failed in a way that it is not meant to; the stream cannot go on."""


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
        max_buffered_tokens: int = MAX_BUFFERED_TOKENS,
        unread_s: float = UNREAD_S,
        telemetry: Telemetry | None = None,
    ) -> None:
        """
        Args:
            loop: runs the rounds; the engine's from now on.
            eos_token_ids: tokens that end a text.
            text_source: makes a detokeniser.
            observer: told about losses.
            max_active: bounds the requests running and waiting together.
            max_buffered_tokens: bounds what is kept for a client that does not take its text,
            unread_s: and for how many seconds after the text's end.
            telemetry: told what becomes of requests; None: one of its own.
        """
        self._loop = loop
        self._eos_token_ids = eos_token_ids
        self._text_source = text_source
        self._observer = observer
        self.admission = Admission(max_active)
        self.max_buffered_tokens = max_buffered_tokens
        self._unread_s = unread_s
        self._telemetry = telemetry or Telemetry()
        self.metrics = EngineMetrics()
        """What rounds took and made; the engine's thread writes it."""
        self._commands = CommandQueue()
        self._wanted = False  # a command that only wakes the thread is on its way
        self._intake: Intake | None = None
        self._streams: dict[str, Stream] = {}  # by request id; engine's thread only
        self._verifier: Verifier | None = None
        self._drafter: Drafter | None = None
        self._costs = Costs()
        self._costs_taken = 0.0
        self._closing = False
        self._failure: BaseException | None = None
        self._ended = False
        self._ending = threading.Lock()  # a request comes before the end, and is told, or after it, and is refused
        self._sequence_ids = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, event_loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread; streams are delivered to ``event_loop``."""
        def drop(stream: Stream) -> None:
            self._commands.post(lambda: self._drop(stream))
        self._intake = Intake(event_loop, self.admission, drop, self._telemetry)
        self._thread.start()

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the round in progress, waiting for it ``timeout_s`` at most; open streams end ``Unavailable``."""
        self._commands.post(self._stop)
        self._thread.join(timeout_s)

    @property
    def active(self) -> int:
        """Requests that are running or waiting."""
        return self.admission.active

    def submit(
        self, request: ValidRequest, *, client: str = "", deadline: float | None = None,
        trace: CallTrace = UNTRACED_CALL,
    ) -> Stream | Choices:
        """Queue a request; to be called on the event loop. Several choices are told apart by the pieces.

        Args:
            request: what to generate.
            client: who asks; the queue is fair between clients.
            deadline: time of the event loop's clock at which the request fails with ``DeadlineExceeded``.
            trace: of the call.

        Raises ``QueueFull`` when there is no room for it, ``InvalidInput`` when its client uses its id already,
        ``DeadlineExceeded`` when it is too late.
        """
        intake = self._started()
        request_id, changed = request.request_id or self.admission.new_request_id(), asyncio.Event()

        def stream(choice: int) -> Stream:
            sequence = request.sequence(str(next(self._sequence_ids)), self._eos_token_ids, choice, client)
            return Stream(
                Generation(sequence, self._text_source(), request.stop, echo=request.echo), intake.cancel,
                client=client, request_id=request_id, priority=request.priority,
                max_buffered_tokens=self.max_buffered_tokens, unread_s=self._unread_s, changed=changed,
                trace=trace,
            )

        streams = [stream(choice) for choice in range(request.choices)]
        with self._ending:
            if self._ended:
                raise self._end_error()
            intake.enter(streams, deadline)
        if not self._wanted:
            self._wanted = True
            self._commands.post(self._look)
        return streams[0] if len(streams) == 1 else Choices(streams, changed)

    async def drain(self) -> None:
        """Wait until no stream is running or waiting."""
        while self.active:
            await asyncio.sleep(0.02)

    def abandon(self, error: QspecError) -> None:
        """End every stream with ``error`` now; on the event loop. It does not wait for the round in progress."""
        self._started().abandon(error)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._loop.running

    @property
    def waiting(self) -> int:
        """Requests that have none yet, or not any more."""
        return self.admission.waiting + self._loop.waiting

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds, as of the last round."""
        return self._loop.free_blocks

    @property
    def verifier_attached(self) -> bool:
        """Whether rounds go on: False from a verifier's loss until another one is attached."""
        return self._verifier is not None

    @property
    def preemptions(self) -> int:
        """Requests that had to give way because KV blocks ran out."""
        return self._loop.preemptions

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

    def _started(self) -> Intake:
        if self._intake is None:
            raise EngineFailed("the engine was not started")
        return self._intake

    def _call(self, command: Callable[[], T]) -> T:
        """Run a command on the engine's thread and wait for its result."""
        try:
            return self._commands.call(command, self._thread.is_alive)
        except ThreadEnded:
            raise EngineFailed("the engine has stopped") from self._failure

    # ---- on the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey_commands()
                if self._has_work:
                    self._fill_slots()
                    self._round()
        except BaseException as error:
            logger.exception("the decoding loop failed")
            self._failure = error
            self._end(EngineFailed("the decoding loop failed: see the server's log"))
            self._observer.engine_failed(error)
        else:
            self._end(self._end_error())

    def _end(self, error: QspecError) -> None:
        """Take no more requests, and fail those that came."""
        with self._ending:
            self._ended = True
        while (command := self._commands.next(block=False)) is not None:
            with contextlib.suppress(Exception):  # the loop may be in no state to obey
                command()
        failed = list(self._streams.values())
        self._streams.clear()
        while (stream := self.admission.next(lambda sequence: True)) is not None:
            failed.append(stream)
        for stream in failed:
            stream.fail(error)
        self._started().deliveries.tell(failed)

    def _end_error(self) -> QspecError:
        if self._failure is not None:
            return EngineFailed("the engine has stopped: see the server's log")
        return Unavailable("the server is shutting down", RETRY_ELSEWHERE_S)

    def _obey_commands(self) -> None:
        """Empty the queue; wait for a command when there is nothing else to do."""
        idle = not self._has_work
        while not self._closing and (command := self._commands.next(block=idle)) is not None:
            command()
            idle = idle and not self._has_work

    def _round(self) -> None:
        assert self._verifier is not None
        try:
            commits = self._loop.step()
        except QspecError as error:  # dead, hung, of another epoch, or talking nonsense
            verifier, self._verifier = self._verifier, None
            self._observer.verifier_lost(verifier, error)
            return
        if self._loop.report is not None:
            self.metrics.round_ended(self._loop.report, self._loop.policy)
        changed: list[Stream] = []
        made: dict[str, int] = {}
        for commit in commits:
            stream = self._streams.get(commit.sequence.request_id)
            if stream is None:
                continue  # dropped since
            changed.append(stream)
            made[stream.client] = made.get(stream.client, 0) + len(commit.token_ids)
            piece = stream.generation.take(commit.token_ids, commit.logprobs)
            self._count(commit.sequence, stream.generation.times, len(piece.token_ids))
            kept = stream.put(piece)
            if piece.ending is not None or not kept:
                del self._streams[commit.sequence.request_id]
                if commit.sequence.finish is None:  # a stop string, or a slow reader: the loop knows neither
                    self._loop.remove(commit.sequence)
        self.admission.charge(made)
        self._started().deliveries.tell(changed)
        if self._drafter is not None and not self._loop.drafter_attached:
            drafter, self._drafter = self._drafter, None
            self._observer.drafter_lost(drafter, self._loop.drafter_error or WorkerLost("the drafter is gone"))
        if time.monotonic() - self._costs_taken > COSTS_EVERY_S:
            self._take_costs()

    def _count(self, sequence: Sequence, times: RequestTimes, tokens: int) -> None:
        """Count what a round gave to one text."""
        self.metrics.tokens_came(times, tokens, sequence.prompt_len)
        looked = self._loop.description.prefix_cache and sequence.sampling.prompt_logprobs is None
        if times.gap_s is None and looked:
            self.metrics.prefix_looked_up(sequence.prompt_len, sequence.cached_prompt_tokens or 0)

    @property
    def _has_work(self) -> bool:
        if self._closing or self._verifier is None:
            return False
        return self._loop.has_work or self.admission.waiting > 0

    def _take_costs(self) -> None:
        self._costs_taken = time.monotonic()
        self._costs = Costs.of(self._loop.policy)
        self.metrics.plain.forget_costs()

    def _look(self) -> None:
        """A request waits: nothing to do but to look whether there is work."""
        self._wanted = False

    def _fill_slots(self) -> None:
        """Give the loop as many waiting requests as will run in the next round."""
        while (stream := self.admission.next(self._loop.has_room)) is not None:
            sequence = stream.generation.sequence
            self._streams[sequence.request_id] = stream
            stream.generation.times.begin()
            self._loop.add(sequence)

    def _drop(self, stream: Stream) -> None:
        """Forget a stream; one that has not ended is taken out of the loop."""
        sequence = stream.generation.sequence
        if self._streams.pop(sequence.request_id, None) is not None:
            self._loop.remove(sequence)

    def _stop(self) -> None:
        self._closing = True
