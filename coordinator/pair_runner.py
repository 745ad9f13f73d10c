"""The life of one pair: its workers are started and attached, it gets requests, and it goes.

A pair goes when it is told to, once what it runs has ended or has moved to other pairs; when its stack gives it up; and
when the server ends. One thread lives through all of it, so that what has to be undone is undone in the order of a
``with`` statement.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from coordinator.pair import Pair, PairState
from coordinator.pair_source import PairSource
from coordinator.router import Router
from coordinator.stack import Stack
from qspec.errors import QspecError

logger = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.05


class PairRunner:
    """``start`` once; ``retire`` and ``stop`` end it, ``join`` waits for that."""

    def __init__(
        self,
        source: PairSource,
        pair: Pair,
        *,
        open_stack: Callable[[Pair], contextlib.AbstractContextManager[Stack]],
        router: Callable[[], Router],
        changed: Callable[[], None],
        after: threading.Event | None,
        grace_s: float,
    ) -> None:
        """
        Args:
            source: where its workers come from.
            pair: is told how it goes.
            open_stack: the pair's stack, while it is entered; it is not started.
            router: gives it requests; asked for once its verifier was there.
            changed: called, from the pair's thread, when it serves, has failed or has gone.
            after: what its start has to wait for.
            grace_s: seconds that its requests get to end when it goes, before they are moved.
        """
        self.source = source
        self.pair = pair
        self.error: BaseException | None = None
        """Why it failed."""
        self.settled = threading.Event()
        """Whether it is known if it serves."""
        self._open_stack = open_stack
        self._router = router
        self._changed = changed
        self._after = after
        self._grace_s = grace_s
        self.gone = threading.Event()
        """Whether nothing is left of it."""
        self._leave = threading.Event()
        self._hurry = threading.Event()
        self._stack: Stack | None = None
        self._stack_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"pair {pair.name}", daemon=True)

    def start(self) -> None:
        """Start the thread; does not wait."""
        self._thread.start()

    @property
    def leaving(self) -> bool:
        """Whether it was told to go."""
        return self._leave.is_set() and self.error is None

    def retire(self) -> None:
        """Give it no more requests, and end it when it has none."""
        self._leave.set()
        if not self.settled.is_set():  # it has none
            self._stop_start()

    def stop(self) -> None:
        """End it now; does not wait."""
        self._hurry.set()
        self._leave.set()
        self._stop_start()

    def join(self) -> None:
        """Wait until it is gone."""
        if self._thread.ident is not None:
            self._thread.join()

    # ---- on the pair's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._may_start():
                with self._open_stack(self.pair) as stack:
                    self._serve(stack)
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, QspecError):
                logger.exception("pair %s failed", self.pair.name)
        finally:
            self.settled.set()
            self.gone.set()
            self._changed()

    def _may_start(self) -> bool:
        while self._after is not None and not self._after.wait(_LOOK_EVERY_S):
            if self._leave.is_set():
                return False
        return not self._leave.is_set()

    def _serve(self, stack: Stack) -> None:
        with self._stack_lock:
            self._stack = stack
            stack.on_failure = self._fail
        try:
            if self._leave.is_set():
                return
            stack.start()
            engine, verifier = self.pair.engine, self.pair.verifier
            assert engine is not None and verifier is not None  # a stack that has started has both
            self.pair.stage = PairState.SERVING
            self._router().add(engine, slots=verifier.max_slots, blocks=verifier.num_blocks)
            self.settled.set()
            self._changed()
            self._leave.wait()
            if self.error is None and not self._hurry.is_set():
                self._drain()
        finally:
            with self._stack_lock:
                self._stack = None
            stack.stop()

    def _drain(self) -> None:
        """Let requests end, and move what has not."""
        engine = self.pair.engine
        assert engine is not None
        self.pair.stage = PairState.DRAINING
        self._router().close(engine)
        until = time.monotonic() + self._grace_s
        while engine.running + engine.waiting and time.monotonic() < until and not self._hurry.wait(_LOOK_EVERY_S):
            pass
        if not self._hurry.is_set():
            engine.evict()

    # ---- from any thread --------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if self.error is None and not self._hurry.is_set():
            self.error = error
            self.pair.stage, self.pair.detail = PairState.FAILED, str(error)
        self._leave.set()

    def _stop_start(self) -> None:
        """End a start in progress."""
        with self._stack_lock:
            stack = self._stack
        if stack is not None:
            stack.interrupt()
