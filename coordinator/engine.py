"""The engine of one pair: a thread that owns the decoding loop, between the router and the workers.

Nothing else touches the ``SpeculationLoop``. The router places requests in ``Seats``, from where the thread takes them
between two rounds; streams to drop and workers to use (attach, replace) come as commands, which it obeys then, too. So
a request that was cancelled, is past its deadline or does not read gives its slot back with the next batch. What a
round commits goes to the streams, and the event loop is told in a single call.

Workers see batches of many requests, never a request: a deadline reaches them as a release in the next batch, and as
the time for which anybody may still want what a batch asks for. How long their answers are waited for is another
matter, and the same for all batches (``coordinator.stack``): a worker that does not answer is lost, whoever still
waits.

A lost drafter costs speed only. At the loss of a verifier all requests go back to the router, which has them prefilled
again from their committed tokens by whichever pair has room for them first, this one included once ``attach_verifier``
has brought another verifier; the streams go on where they were.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from coordinator.command_queue import CommandQueue, ThreadEnded
from coordinator.engine_observer import Costs, EngineObserver
from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.placement import PairLoad
from coordinator.running_texts import RunningTexts
from coordinator.seats import Seats
from coordinator.stream import Stream
from qspec.cost_calibration import calibrate as calibrate_costs
from qspec.errors import QspecError, Unavailable, WorkerLost
from qspec.interfaces import Drafter, DrafterDescription, Progress, Verifier, VerifierDescription
from qspec.speculation import SpeculationLoop

logger = logging.getLogger(__name__)
T = TypeVar("T")
COSTS_EVERY_S = 1.0
RETRY_ELSEWHERE_S = 5.0
"""Seconds after which to ask again at the address of a server that goes: its successor has to load a model."""


class EngineFailed(QspecError):
    """The decoding loop failed in a way that it is not meant to; the stream cannot go on."""


class EngineHome(Protocol):
    """What an engine tells the router; called from the engine's thread, returns at once."""

    def room_changed(self) -> None:
        """Another load than before was published."""
        ...

    def committed(self, engine: Engine, streams: Collection[Stream], made: Mapping[str, int]) -> None:
        """These streams have something new; ``made``: tokens by client."""
        ...

    def take_back(self, engine: Engine, streams: Collection[Stream], *, cache_lost: bool) -> None:
        """These have no place any more and have not ended; ``cache_lost``: the verifier's cache is gone."""
        ...

    def engine_ended(self, engine: Engine, error: QspecError, left: Collection[Stream]) -> None:
        """Nothing runs there any more; ``left`` is what ran, and was ended with ``error``."""
        ...


class Engine:
    """Runs requests; see the module. ``start`` before anything else, ``close`` at the end."""

    def __init__(self, loop: SpeculationLoop, *, home: EngineHome, observer: EngineObserver) -> None:
        """
        Args:
            loop: runs the rounds; the engine's from now on.
            home: places requests here.
            observer: told about losses.
        """
        self._loop = loop
        self._home = home
        self._observer = observer
        self._commands = CommandQueue()
        self._wanted = False  # a command that only wakes the thread is on its way
        self.metrics = EngineMetrics()
        """What rounds took and made; the engine's thread writes it."""
        self._seats = Seats()
        self._texts = RunningTexts(loop, self.metrics)
        self._verifier: Verifier | None = None
        self._drafter: Drafter | None = None
        self._costs = Costs()
        self._costs_taken = 0.0
        self._untold: tuple[Collection[Stream], Mapping[str, int]] | None = None
        """What the last round gave to whom, if the router has not been told."""
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float | None = None) -> None:
        """Stop after the round in progress, waiting for it ``timeout_s`` at most; open streams end ``Unavailable``."""
        self._commands.post(self._stop)
        self._thread.join(timeout_s)

    @property
    def load(self) -> PairLoad | None:
        """What is held and left; None while nothing can run here."""
        return self._seats.load

    def place(self, stream: Stream, names: Sequence[bytes] = ()) -> bool:
        """Run a request, whose KV blocks have these names, from the next round on.

        False when nothing can run here any more.
        """
        placed = self._seats.place(stream, names)
        if placed and not self._wanted:
            self._wanted = True
            self._commands.post(self._look)
        return placed

    def drop(self, stream: Stream) -> None:
        """Forget a stream, if it is here."""
        if not self._seats.withdraw(stream):
            self._commands.post(lambda: self._texts.drop(stream))

    def evict(self) -> None:
        """Give all requests back to the router after the round in progress, as if the verifier was lost; blocks."""
        self._call(lambda: self._hand_over(cache_lost=False))

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return self._loop.running

    @property
    def waiting(self) -> int:
        """Requests on their way to a slot, or that had to give theirs up."""
        return self._seats.placed + self._loop.waiting

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
            self._lose_verifier()
            self._drafter = None
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
        """Nothing runs here any more: the verifier is known to be gone, perhaps before a round has noticed."""
        self._call(self._lose_verifier)

    def calibrate(self, progress: Progress) -> None:
        """Warm-up rounds that fill the cost table; blocks, raises what they raise."""
        def calibrate() -> None:
            calibrate_costs(self._loop, progress)
            self._take_costs()
        self._call(calibrate)

    def _call(self, command: Callable[[], T]) -> T:
        """Run a command on the engine's thread and wait for its result."""
        try:
            return self._commands.call(command, self._thread.is_alive)
        except ThreadEnded:
            raise EngineFailed("the engine has stopped") from self._failure

    # ---- on the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: QspecError = Unavailable("the server is shutting down", RETRY_ELSEWHERE_S)
        try:
            while not self._closing:
                self._turn(wait=True)
        except BaseException as failure:
            logger.exception("the decoding loop failed")
            self._failure = failure
            error = EngineFailed("the decoding loop failed: see the server's log")
        self._end(error)
        if self._failure is not None:
            self._observer.engine_failed(self._failure)

    def _end(self, error: QspecError) -> None:
        """Take no more requests, and fail those that came."""
        self._tell()
        self._seats.publish(None)
        while (command := self._commands.next(block=False)) is not None:
            with contextlib.suppress(Exception):  # the loop may be in no state to obey
                command()
        failed, never_begun = self._texts.fail(error), self._seats.take()
        for stream in never_begun:
            stream.fail(error)
        self._home.engine_ended(self, error, [*failed, *never_begun])

    def _turn(self, *, wait: bool) -> None:
        """Obey commands, take what was placed, run a round; ``wait`` for a command when there is nothing else to do."""
        while not self._closing:
            command = self._commands.next(block=wait and not self._has_work)
            if command is None:
                break
            self._tell()
            command()
            self._publish()
        self._texts.begin(self._seats.take())
        if self._has_work:
            self._round()
            self._publish()

    def _publish(self) -> None:
        """Say what there is room for now, and have requests that wait for it placed."""
        loop = self._loop
        load = None
        if self._verifier is not None and not self._closing:
            load = PairLoad(sequences=loop.running + loop.waiting, room=loop.room)
        if self._seats.publish(load):
            self._home.room_changed()

    def _lose_verifier(self) -> None:
        self._verifier = None
        self._hand_over(cache_lost=True)

    def _hand_over(self, *, cache_lost: bool) -> None:
        """Every request goes back to the router, in the order in which they came."""
        streams = self._texts.evict()
        self._seats.publish(None)
        self._home.take_back(self, [*streams, *self._seats.take()], cache_lost=cache_lost)

    def _round(self) -> None:
        assert self._verifier is not None
        try:
            commits = self._loop.step(self._tell)
        except QspecError as error:  # dead, hung, of another epoch, or talking nonsense
            self._tell()
            verifier = self._verifier
            self._loop.note_loss()
            self._lose_verifier()
            self._observer.verifier_lost(verifier, error)
            return
        if self._loop.report is not None:
            self.metrics.round_ended(self._loop.report, self._loop.policy)
        changed, _ = self._untold = self._texts.deliver(commits)
        if not self._loop.asked_ahead or any(stream.complete or stream.pressed for stream in changed):
            self._tell()
        if self._drafter is not None and not self._loop.drafter_attached:
            drafter, self._drafter = self._drafter, None
            self._observer.drafter_lost(drafter, self._loop.drafter_error or WorkerLost("the drafter is gone"))
        if time.monotonic() - self._costs_taken > COSTS_EVERY_S:
            self._take_costs()

    def _tell(self) -> None:
        """Have the texts go on.

        Where rounds are asked for ahead that is for the time after the next question: the event loop would be at work
        while the workers wait for it.
        """
        untold, self._untold = self._untold, None
        if untold is not None:
            self._home.committed(self, *untold)

    @property
    def _has_work(self) -> bool:
        if self._closing or self._verifier is None:
            return False
        return self._loop.has_work or self._seats.placed > 0

    def _take_costs(self) -> None:
        self._costs_taken = time.monotonic()
        self._costs = Costs.of(self._loop.policy)
        self.metrics.plain.forget_costs()

    def _look(self) -> None:
        """A request was placed: nothing to do but to look."""
        self._wanted = False

    def _stop(self) -> None:
        self._closing = True
