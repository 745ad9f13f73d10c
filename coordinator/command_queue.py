"""What other threads ask of one: commands that it obeys in their order, when it has time for them."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
_LOOK_EVERY_S = 0.5


class ThreadEnded(Exception):
    """The thread that should have obeyed has ended."""


class CommandQueue:
    """``post`` and ``call`` are for any thread, ``next`` for the one that obeys."""

    def __init__(self) -> None:
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, command: Callable[[], None]) -> None:
        """Have a command obeyed some time."""
        self._commands.put(command)

    def call(self, command: Callable[[], T], alive: Callable[[], bool]) -> T:
        """Have a command obeyed and wait for it; returns or raises what it does.

        ``alive`` tells whether anybody obeys: ``ThreadEnded`` is raised when nobody does any more.
        """
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(command())
            except BaseException as error:  # noqa: BLE001  (the caller's to deal with)
                result.set_exception(error)

        self.post(run)
        while not wait([result], timeout=_LOOK_EVERY_S).done:
            if not alive() and not result.done():
                raise ThreadEnded("nobody obeys any more")
        return result.result()

    def next(self, *, block: bool) -> Callable[[], None] | None:
        """The next command; None when there is none and ``block`` is not set."""
        try:
            return self._commands.get(block=block)
        except queue.Empty:
            return None
