"""The one thread in which a worker's engine lives.

An engine is loaded, warmed up, called and closed by the same thread, because torch keeps a team of OpenMP threads for
every thread that calls it, and two teams on the same cores take turns by timeouts. The event loop only waits. The
thread is a daemon: a process that is told to stop while its model loads does not wait for it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Engine(Protocol):
    """Whatever has to be let go of in the end."""

    def close(self) -> None:
        """Let go of everything."""
        ...


_EngineT = TypeVar("_EngineT", bound=Engine)
_Result = TypeVar("_Result")


class EngineThread(Generic[_EngineT]):
    """Runs ``load``, then one call after another on what it gave, all in one thread of its own.

    The thread starts with the first ``loaded`` or ``call``: an address that cannot be listened at is found out before
    any model is loaded.
    """

    def __init__(self, load: Callable[[], _EngineT], name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._engine: _EngineT | None = None
        self._load = load
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._started = False

    async def loaded(self) -> None:
        """Return when the engine is loaded; raises what loading raised."""
        if not self._started:
            self._started = True
            self._thread.start()
        await asyncio.shield(self._loaded)

    @property
    def engine(self) -> _EngineT | None:
        """The engine once it is loaded, for the little that it allows any thread to ask."""
        return self._engine

    async def call(self, function: Callable[[_EngineT], _Result]) -> _Result:
        """``function(engine)``, after loading and after the calls before it.

        A call that has begun runs to its end even if the caller is cancelled; another one is not begun then.
        """
        if not self._loaded.done() or self._engine is None:
            await self.loaded()
        engine = self._engine
        assert engine is not None  # loaded() raises otherwise
        answer: asyncio.Future[_Result] = self._loop.create_future()

        def job() -> None:
            if answer.cancelled():
                return
            try:
                result = function(engine)
            except BaseException as error:  # noqa: BLE001  handed to whoever waits
                self._settle(answer, None, error)
            else:
                self._settle(answer, result, None)

        self._jobs.put(job)
        return await answer

    async def close(self, timeout_s: float = 2.0) -> None:
        """Close the engine once it is idle. Gives up after ``timeout_s``: the process is about to end anyway."""
        if not self._started:
            return
        self._jobs.put(None)
        await self._loop.run_in_executor(None, self._thread.join, timeout_s)
        if not self._loaded.done():
            self._loaded.cancel()

    def _work(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as error:  # noqa: BLE001  handed to whoever waits
            self._settle(self._loaded, None, error)
            return
        self._settle(self._loaded, None, None)
        while (job := self._jobs.get()) is not None:
            job()
        self._engine.close()

    def _settle(self, future: asyncio.Future[_Result], result: _Result | None, error: BaseException | None) -> None:
        def settle() -> None:
            if future.done():  # the caller was cancelled
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)
