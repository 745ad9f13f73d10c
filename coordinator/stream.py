"""One request as the event loop sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coordinator.generation import Generation, Piece
from qspec.errors import QspecError


class Stream:
    """An asynchronous iterator over the pieces of a request, the last with an ending.

    ``cancel`` (or ``async with``) frees the slot of a stream that has not ended. Iteration raises ``EngineFailed`` or
    ``WorkerLost`` when the stream cannot go on.
    """

    def __init__(self, generation: Generation, cancel: Callable[[Stream], None]) -> None:
        self.generation = generation
        self.pieces: asyncio.Queue[Piece | QspecError] = asyncio.Queue()
        self._cancel = cancel
        self._ended = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        piece = await self.pieces.get()
        if isinstance(piece, QspecError):
            self._ended = True
            raise piece
        self._ended = piece.ending is not None
        return piece

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop generating; may be called at any time, and again."""
        self._cancel(self)
