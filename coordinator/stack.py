"""Keeps a verifier and a drafter behind one pair's engine, from the first start to the last stop.

One thread compares what there is with what there should be, whenever something has changed (a process told something or
ended, the engine lost a worker) and every so often, and does the next thing that is missing: start a process, attach a
worker that became ready, replace one that is dead or hung. Start order therefore does not matter, and every kind of
loss takes the same path as the first start.

- A lost **drafter** is replaced while rounds go on without drafts.
- A lost **verifier** takes its arena along: the drafter lets go of it, or is killed (its mapping would keep the
  memory), and both are attached to the next verifier's arena, whose epoch differs.
- A worker that was given by address is somebody else's process: it is only ever connected to again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from coordinator.agreement import Agreement
from coordinator.connections import Connections
from coordinator.engine import Engine
from coordinator.pair import Pair
from coordinator.start_progress import StartProgress
from coordinator.worker import Worker
from qspec.cli import stack_options
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError, WorkerLost
from qspec.interfaces import Drafter, Verifier, VerifierDescription
from qspec.quant.methods import NO_DRAFTER
from qspec.status import EventKind, StatusEvent

logger = logging.getLogger(__name__)

MODULES = {"verifier": "verifier", "drafter": "drafter"}
"""Programs of the workers, by role."""
LOOK_EVERY_S = 0.25
STOP_GRACE_S = 5.0
"""Seconds that a worker has to end after SIGTERM."""


class StackStopped(QspecError):
    """``stop`` was called while the stack was still starting."""


class Stack:
    """The workers of one pair, and the thread that tends them."""

    def __init__(
        self,
        config: StackConfig,
        pair: Pair,
        progress: StartProgress,
        *,
        agreement: Agreement,
        runtime_dir: Path,
        verifier_address: str | None,
        drafter_address: str | None,
        make_engine: Callable[[Stack, VerifierDescription], Engine],
        modules: Mapping[str, str] = MODULES,
        environment: Mapping[str, str] | None = None,
        worker_options: Sequence[str] = (),
    ) -> None:
        """``make_engine`` is called once, when the first verifier is ready, with this stack as the observer.

        ``pair`` is told how it goes. Verifiers have to be like the one that ``agreement`` knows. ``environment`` is
        added to that of the workers (``coordinator.mps``), ``worker_options`` to their options.
        """
        self._pair = pair
        self._progress = progress
        self._connections = Connections(pair, agreement, lambda description: make_engine(self, description))
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._verifier_error: tuple[Verifier, QspecError] | None = None
        self._drafter_error: tuple[Drafter, QspecError] | None = None
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        """Called once, from another thread, when the stack cannot go on."""

        self._config, self._runtime_dir, self._worker_options = config, runtime_dir, worker_options

        def worker(role: str, given: str | None) -> Worker:
            address = given or f"unix:{runtime_dir / role}.sock"
            arguments = None if given else self._arguments(address, config)
            return Worker(role, modules[role], address, arguments, lambda: self._changed(role), environment)

        self._verifier = worker("verifier", verifier_address)
        drafting = drafter_address is not None or config.draft_quantization != NO_DRAFTER
        self._drafter = worker("drafter", drafter_address) if drafting else None
        self._thread = threading.Thread(target=self._run, name="stack", daemon=True)

    def start(self) -> None:
        """Start the workers, attach them, calibrate; blocks until ready. Raises what keeps the stack from starting."""
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            raise self._failed

    def interrupt(self) -> None:
        """Begin to stop; does not wait."""
        self._stopping.set()
        self._wake.set()

    def stop(self) -> None:
        """End every stream and both workers; blocks. Nothing is left running."""
        self.interrupt()
        if self._thread.ident is not None:
            self._thread.join()

    def verifier_lost(self, verifier: Verifier, error: QspecError) -> None:
        """See ``EngineObserver``."""
        self._verifier_error = (verifier, error)
        self._wake.set()

    def drafter_lost(self, drafter: Drafter, error: QspecError) -> None:
        """See ``EngineObserver``."""
        self._drafter_error = (drafter, error)
        self._wake.set()

    def engine_failed(self, error: BaseException) -> None:
        """See ``EngineObserver``."""
        self._fail(error)

    # Everything below runs on the stack's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                self._look()
                self._wake.wait(LOOK_EVERY_S)
            if not self._started.is_set():
                self._fail(StackStopped("the server is shutting down"))
        except BaseException as error:
            if not isinstance(error, QspecError):
                logger.exception("the stack failed")
            self._fail(error)
        finally:
            self._shut_down()

    def _look(self) -> None:
        self._bury()
        for worker in self._workers:
            worker.tend()
        if not self._verifier.attached and self._verifier.is_ready():
            self._attach_verifier()
        drafter = self._drafter
        if drafter is not None and self._verifier.attached and not drafter.attached and drafter.is_ready():
            self._attach_drafter(drafter)
        self._tell_absence()
        complete = self._verifier.attached and (drafter is None or drafter.attached)
        if complete and not self._started.is_set():
            self._calibrate()
            self._started.set()

    def _tell_absence(self) -> None:
        """A start that waits for somebody else's worker says so, once for each reason."""
        if self._started.is_set():
            return
        for worker in self._workers:
            if (absence := worker.absence) is not None:
                self._progress.worker(worker.role, StatusEvent(kind=EventKind.STAGE, text=absence), ready=False)

    def _bury(self) -> None:
        """Take away workers that are dead, hung, or that the engine could not work with."""
        verifier, drafter = self._verifier, self._drafter
        error = verifier.failure() or _about(self._verifier_error, self._connections.verifier)
        if error is not None:
            self._refuse_bad_start(verifier, error)
            self._lose_verifier(error)
            if verifier.given_up:
                raise QspecError(f"the verifier failed {verifier.restarts} times, last: {error}") from error
        if drafter is not None:
            error = drafter.failure() or _about(self._drafter_error, self._connections.drafter)
            if error is not None:
                self._refuse_bad_start(drafter, error)
                self._lose_drafter(drafter, error)

    def _refuse_bad_start(self, worker: Worker, error: QspecError) -> None:
        """A first start that fails for a reason of its own would fail again: report it instead."""
        if not self._started.is_set() and (worker.restarts > 0 or isinstance(error, InvalidInput)):
            raise error

    def _attach_verifier(self) -> None:
        try:
            first = self._connections.attach_verifier(self._verifier.address)
        except InvalidInput:
            raise
        except QspecError as error:
            self._refuse_bad_start(self._verifier, error)
            self._lose_verifier(error)
            return
        self._pin_methods(first)
        self._verifier.mark_attached()
        logger.info("verifier attached")

    def _pin_methods(self, verifier: VerifierDescription) -> None:
        """Keep what ``auto`` stood for at the first start, whatever a later one would choose."""
        config = self._config.settled(draft=verifier.draft_quantization, verify=verifier.verify_quantization)
        for worker in self._workers:
            worker.start_with(self._arguments(worker.address, config))

    def _arguments(self, address: str, config: StackConfig) -> list[str]:
        """Command line of a worker."""
        process = (f"--listen={address}", f"--runtime-dir={self._runtime_dir}", *self._worker_options)
        return [*process, *stack_options(config)]

    def _attach_drafter(self, drafter: Worker) -> None:
        try:
            attached = self._connections.attach_drafter(drafter.address)
        except QspecError as error:
            self._refuse_bad_start(drafter, error)
            self._lose_drafter(drafter, error)
            return
        drafter.mark_attached()
        logger.info("drafter attached, %s", attached.description.method)

    def _lose_verifier(self, error: QspecError) -> None:
        logger.warning("the verifier is lost, its requests pause until it is replaced: %s", error)
        self._connections.close_verifier()
        if self._drafter is not None and self._drafter.attached:
            self._free_arena(self._drafter)
        self._verifier.discard()
        self._pair.verifier_restarts = self._verifier.restarts

    def _free_arena(self, drafter: Worker) -> None:
        """Have the drafter let go of a lost arena, or kill it."""
        try:
            self._connections.free_arena(drafter.address)
            drafter.release()
        except QspecError as error:
            self._lose_drafter(drafter, error)

    def _lose_drafter(self, drafter: Worker, error: QspecError) -> None:
        logger.warning("the drafter is lost, decoding goes on without it: %s", error)
        self._connections.close_drafter()
        drafter.discard()
        self._pair.drafter_restarts = drafter.restarts
        if drafter.given_up:
            logger.error("the drafter failed %d times and is given up: %s", drafter.restarts, error)

    def _calibrate(self) -> None:
        """Measure; a worker that is lost meanwhile is replaced, and whatever was not measured is learnt in use."""
        self._progress.calibrating("measuring draft and verify steps", 0.0)
        try:
            self._connections.engine.calibrate(self._progress.calibrating)
        except WorkerLost as error:
            if self._connections.verifier is not None:
                self.verifier_lost(self._connections.verifier, error)

    def _shut_down(self) -> None:
        if self._pair.engine is not None:
            self._pair.engine.close(STOP_GRACE_S)  # a round that hangs ends with its worker
        for worker in self._workers:  # both at once, then one after the other
            if worker.child is not None:
                worker.child.terminate()
        for worker in self._workers:
            worker.end(STOP_GRACE_S)
        self._connections.close()

    @property
    def _workers(self) -> list[Worker]:
        return [self._verifier] if self._drafter is None else [self._verifier, self._drafter]

    # Called from any thread.

    def _changed(self, role: str) -> None:
        if not self._started.is_set():
            for worker in self._workers:
                if worker.role == role and worker.child is not None:
                    self._progress.worker(role, worker.child.stage, worker.child.ready is not None)
        self._wake.set()

    def _fail(self, error: BaseException) -> None:
        if self._failed is None:
            self._failed = error
            if self._started.is_set():
                self.on_failure(error)
            self._started.set()
            self._stopping.set()
            self._wake.set()


def _about(told: tuple[object, QspecError] | None, current: object) -> QspecError | None:
    """What the engine told about the connection in use; what it told about an earlier one is settled."""
    return told[1] if told is not None and told[0] is current else None
