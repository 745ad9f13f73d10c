"""From requests to pairs of workers: one queue in front of all engines.

Admission, fairness, deadlines and delivery are one for the whole server; a pair has an engine of its own
(``coordinator.engine``). The request whose turn it is goes to the pair that is best for it as soon as one has room for
it (``coordinator.placement``), and runs there to its end. It goes on at another pair, prefilled from its committed
tokens, when its pair loses its verifier or is taken away. Its text does not change by that, because all verifiers are
alike (``coordinator.agreement``). What had a place already goes ahead of everything that waits for its first one.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as ReadOnlySequence
from dataclasses import dataclass

from coordinator.admission import Admission
from coordinator.choices import Choices
from coordinator.engine import Engine, EngineFailed
from coordinator.generation import Generation, TextSource
from coordinator.intake import Intake
from coordinator.placed_prefixes import PlacedPrefixes
from coordinator.placement import choose_pair
from coordinator.stream import MAX_BUFFERED_TOKENS, UNREAD_S, Stream
from coordinator.telemetry import Telemetry
from coordinator.tracing.tracer import UNTRACED_CALL, CallTrace
from coordinator.trials import Trials, verdict
from coordinator.valid_request import ValidRequest
from qspec.errors import QspecError
from qspec.sequence import Sequence


@dataclass(slots=True)
class _Place:
    """A pair as the router sees it."""

    engine: Engine
    slots: int
    prefixes: PlacedPrefixes
    open: bool = True
    """Whether requests are placed here; one that is closed runs what it has."""


class Router:
    """See the module. ``submit``, ``drain`` and ``abandon`` are for the event loop, the rest for any thread."""

    def __init__(
        self,
        *,
        eos_token_ids: frozenset[int],
        text_source: Callable[[], TextSource],
        max_waiting: int,
        max_buffered_tokens: int = MAX_BUFFERED_TOKENS,
        unread_s: float = UNREAD_S,
        telemetry: Telemetry | None = None,
    ) -> None:
        """
        Args:
            eos_token_ids: tokens that end a text.
            text_source: makes a detokeniser.
            max_waiting: bounds the requests beyond those for which the pairs have slots.
            max_buffered_tokens: bounds what is kept for a client that does not take its text,
            unread_s: and for how many seconds after the text's end.
            telemetry: told what becomes of requests; None: one of its own.
        """
        self._eos_token_ids = eos_token_ids
        self._text_source = text_source
        self._max_waiting = max_waiting
        self.admission = Admission(max_waiting)
        self.max_buffered_tokens = max_buffered_tokens
        self._unread_s = unread_s
        self._telemetry = telemetry or Telemetry()
        self._intake: Intake | None = None
        self._lock = threading.RLock()  # before those of admission and seats, never behind them
        self._places: list[_Place] = []
        self._returned: list[Stream] = []  # lost their place, and go first
        self._trials = Trials(lambda stream: self.admission.is_active(stream) and stream not in self._returned)
        self._ended: QspecError | None = None  # why no request is taken: no pair is left
        self._sequence_ids = itertools.count(1)

    def start(self, event_loop: asyncio.AbstractEventLoop) -> None:
        """Deliver streams to ``event_loop``."""
        self._intake = Intake(event_loop, self.admission, self._drop, self._telemetry)

    # ---- pairs ------------------------------------------------------------------------------------------------------

    def add(self, engine: Engine, *, slots: int, blocks: int) -> None:
        """Place requests with this engine, too; ``blocks``: KV blocks that its verifier has."""
        with self._lock:
            self._places.append(_Place(engine, slots, PlacedPrefixes(blocks)))
            self._ended = None
            self._resize()
            self._dispatch()

    def close(self, engine: Engine) -> None:
        """Place no more requests there; what runs there runs on (``Engine.evict`` moves it)."""
        with self._lock:
            for place in self._places:
                place.open = place.open and place.engine is not engine
            self._resize()

    def _resize(self) -> None:
        self.admission.resize(self._max_waiting + sum(place.slots for place in self._places if place.open))

    # ---- requests ---------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests that are running or waiting."""
        return self.admission.active

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return sum(place.engine.running for place in self._places)

    @property
    def waiting(self) -> int:
        """Requests that have none yet, or not any more."""
        return self.admission.waiting + len(self._returned) + sum(place.engine.waiting for place in self._places)

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds, as of the last rounds."""
        return sum(place.engine.free_blocks for place in self._places)

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
            sequence.deadline = deadline  # the event loop's clock is the decoding loop's: the monotonic one
            return Stream(
                Generation(sequence, self._text_source(), request.stop, echo=request.echo), intake.cancel,
                client=client, request_id=request_id, priority=request.priority,
                max_buffered_tokens=self.max_buffered_tokens, unread_s=self._unread_s, changed=changed,
                trace=trace,
            )

        streams = [stream(choice) for choice in range(request.choices)]
        with self._lock:
            if self._ended is not None:
                raise self._ended
            intake.enter(streams, deadline)
            self._dispatch()
        return streams[0] if len(streams) == 1 else Choices(streams, changed)

    async def drain(self) -> None:
        """Wait until no stream is running or waiting."""
        while self.active:
            await asyncio.sleep(0.02)

    def abandon(self, error: QspecError) -> None:
        """End every stream with ``error`` now; on the event loop. It does not wait for the rounds in progress."""
        self._started().abandon(error)

    # ---- EngineHome -------------------------------------------------------------------------------------------------

    def room_changed(self) -> None:
        """See ``EngineHome``."""
        with self._lock:
            self._dispatch()

    def committed(self, engine: Engine, streams: Collection[Stream], made: Mapping[str, int]) -> None:
        """See ``EngineHome``."""
        self.admission.charge(made)
        self._started().deliveries.tell(streams)
        with self._lock:
            for place in self._places if len(self._places) > 1 else ():
                if place.engine is engine:
                    for stream in streams:
                        if stream.complete:  # what comes next in a conversation begins with all of it
                            place.prefixes.note(self._names(stream.generation.sequence))
            if self._returned:
                self._dispatch()

    def take_back(self, engine: Engine, streams: Collection[Stream], *, cache_lost: bool) -> None:
        """See ``EngineHome``."""
        with self._lock:
            for place in self._places:
                if cache_lost and place.engine is engine:
                    place.prefixes.clear()
            for stream in streams:
                if (error := verdict(stream)) is not None:
                    stream.fail(error)
                else:
                    self._returned.append(stream)
            self._dispatch()
        self._started().deliveries.tell(stream for stream in streams if stream.complete)

    def engine_ended(self, engine: Engine, error: QspecError, left: Collection[Stream]) -> None:
        """See ``EngineHome``. The end of the last open one is the end of everything that waits, too."""
        ended = list(left)
        with self._lock:
            was_open = any(place.open for place in self._places if place.engine is engine)
            self._places = [place for place in self._places if place.engine is not engine]
            self._resize()
            if was_open and not any(place.open for place in self._places):
                failed = isinstance(error, EngineFailed)
                self._ended = EngineFailed("every engine has stopped: see the server's log") if failed else error
                ended += self._returned
                self._returned.clear()
                ended += iter(lambda: self.admission.next(lambda sequence: True), None)
        for stream in ended:
            stream.fail(error)
        self._started().deliveries.tell(ended)

    # ---- under the lock ---------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Place requests as long as there is one whose turn it is, and room for it."""
        for stream in list(self._returned):
            if self.admission.is_active(stream):
                if not self._trials.may_run(stream):
                    continue
                if not self._place(stream):
                    return  # nobody passes it
            self._returned.remove(stream)
        while (turn := self.admission.next(self._fits)) is not None:
            if not self._place(turn):  # its pair has lost its verifier since
                self._returned.append(turn)
                return

    def _fits(self, sequence: Sequence) -> bool:
        return self._choose(sequence, self._names(sequence)) is not None

    def _place(self, stream: Stream) -> bool:
        """Give a request to the best pair that takes it now."""
        sequence = stream.generation.sequence
        names = self._names(sequence)
        while (place := self._choose(sequence, names)) is not None:
            if place.engine.place(stream, names):
                if len(self._places) > 1:
                    place.prefixes.note(names)
                return True
        return False

    def _choose(self, sequence: Sequence, names: ReadOnlySequence[bytes]) -> _Place | None:
        loads = [place.engine.load if place.open else None for place in self._places]
        cached = [
            place.prefixes.cached_blocks(names) * (load.room.block_size if load is not None else 0)
            for place, load in zip(self._places, loads, strict=True)
        ]
        index = choose_pair(len(sequence.tokens), loads, cached, names)
        return None if index is None else self._places[index]

    def _names(self, sequence: Sequence) -> tuple[bytes, ...]:
        """Those of the blocks of its tokens, where they are of use: to share blocks, or to choose among pairs."""
        rooms = [load.room for place in self._places if (load := place.engine.load) is not None]
        useful = len(self._places) > 1 or any(room.shares for room in rooms)
        return tuple(sequence.block_names(rooms[0].block_size)) if useful and rooms and sequence.reuses else ()

    def _drop(self, stream: Stream) -> None:
        """A stream that has left admission before its end; wherever it is, and if it is just being handed over."""
        with self._lock:
            if stream in self._returned:
                self._returned.remove(stream)
            for place in self._places:
                place.engine.drop(stream)

    def _started(self) -> Intake:
        if self._intake is None:
            raise EngineFailed("the router was not started")
        return self._intake
