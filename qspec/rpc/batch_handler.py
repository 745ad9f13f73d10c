"""The server's side of a long-lived stream of batches: one answer per batch, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from qspec.errors import WorkerLost

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class BatchStreams:
    """All streams of a servicer. They never end by themselves, so ``drain`` ends them: idle ones at once, others after
    the answer that they are working on."""

    def __init__(self) -> None:
        self._idle: set[asyncio.Task[object]] = set()
        self._open = 0
        self._draining = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    async def serve(
        self, requests: AsyncIterator[_Request], answer: Callable[[_Request], Awaitable[_Response]]
    ) -> AsyncIterator[_Response]:
        """The responses to ``requests``. Raises ``WorkerLost`` when the server is stopping."""
        task = asyncio.current_task()
        assert task is not None
        self._open += 1
        self._all_closed.clear()
        try:
            while not self._draining:
                self._idle.add(task)
                try:
                    request = await anext(requests)
                except StopAsyncIteration:
                    return
                finally:
                    self._idle.discard(task)
                yield await answer(request)
            raise WorkerLost("the worker is stopping")
        except asyncio.CancelledError:
            if not self._draining:
                raise
            raise WorkerLost("the worker is stopping") from None
        finally:
            self._open -= 1
            if not self._open:
                self._all_closed.set()

    async def drain(self, timeout_s: float = 3.0) -> None:
        """End every stream; returns when all have ended, or after ``timeout_s``."""
        self._draining = True
        for task in self._idle:
            task.cancel()
        try:
            await asyncio.wait_for(self._all_closed.wait(), timeout_s)
        except asyncio.TimeoutError:
            return  # the server's own grace period and its end come next
