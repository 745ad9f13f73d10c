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
    the answers that they are working on.

    A stream is read ahead, by some requests at most: who answers gets a request while it works on the one before.
    """

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()
        self._open = 0
        self._draining = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()

    async def serve(
        self, requests: AsyncIterator[_Request], answer: Callable[[_Request], Awaitable[_Response]]
    ) -> AsyncIterator[_Response]:
        """The responses to ``requests``. Raises ``WorkerLost`` when the server is stopping."""
        answers: asyncio.Queue[asyncio.Future[_Response] | None] = asyncio.Queue(1)
        begun: set[asyncio.Future[_Response]] = set()
        self._open += 1
        self._all_closed.clear()
        reader = asyncio.ensure_future(_read(requests, answer, answers, begun))
        self._readers.add(reader)
        if self._draining:
            reader.cancel()
        try:
            while (first := await answers.get()) is not None:
                response = await first
                begun.discard(first)
                yield response
            if self._draining:
                raise WorkerLost("the worker is stopping")
            await reader
        except asyncio.CancelledError:
            if not self._draining:
                raise
            raise WorkerLost("the worker is stopping") from None
        finally:
            reader.cancel()
            for pending in begun:
                pending.cancel()
            self._readers.discard(reader)
            self._open -= 1
            if not self._open:
                self._all_closed.set()

    async def drain(self, timeout_s: float = 3.0) -> None:
        """End every stream; returns when all have ended, or after ``timeout_s``."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()
        try:
            await asyncio.wait_for(self._all_closed.wait(), timeout_s)
        except asyncio.TimeoutError:
            return  # the server's own grace period and its end come next


async def _read(
    requests: AsyncIterator[_Request], answer: Callable[[_Request], Awaitable[_Response]],
    answers: asyncio.Queue[asyncio.Future[_Response] | None], begun: set[asyncio.Future[_Response]],
) -> None:
    """Begin to answer each request as it comes; None behind the last one, also when this is cancelled."""
    try:
        async for request in requests:
            pending = asyncio.ensure_future(answer(request))
            begun.add(pending)
            await answers.put(pending)
    finally:
        await answers.put(None)
