"""Several texts of one request, as one stream: what any of them has is next, and an error of one ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from coordinator.generation import Piece
from coordinator.stream import Stream


class Choices:
    """Iterates as a ``Stream`` does, over the pieces of all choices; each says which one it is of.

    The choices share ``changed``, which is set when any of them has something new.
    """

    def __init__(self, streams: Sequence[Stream], changed: asyncio.Event) -> None:
        self._streams = list(streams)
        self._changed = changed
        self.request_id = streams[0].request_id

    def __aiter__(self) -> Choices:
        return self

    async def __anext__(self) -> Piece:
        while (piece := self._next_piece()) is None:
            if all(stream.read for stream in self._streams):
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return piece

    def _next_piece(self) -> Piece | None:
        """Of whoever was not heard for longest."""
        for stream in self._streams:
            if not stream.read and (piece := stream.poll()) is not None:
                self._streams.remove(stream)
                self._streams.append(stream)
                return piece
        return None

    async def __aenter__(self) -> Choices:
        return self

    async def __aexit__(self, *exception: object) -> None:
        for stream in self._streams:
            await stream.__aexit__(*exception)

    def cancel(self) -> None:
        """Stop generating all of them; may be called at any time, and again."""
        for stream in self._streams:
            stream.cancel()
