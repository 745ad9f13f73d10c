"""One request as the event loop sees it: pieces on their way from the engine's thread to one client.

The engine never waits for a client. What a client has not taken yet is kept for it up to a bound; a client that is
further behind is cut off, what was kept is dropped, and its slot goes to somebody else. So a slow reader slows nobody,
and costs no more memory than the bound.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from coordinator.generation import Ending, Generation, Piece
from coordinator.tracing.tracer import UNTRACED_CALL, CallTrace
from qspec.errors import QspecError, SlowReader

MAX_BUFFERED_TOKENS = 1024
"""Default for the tokens that are kept for a client that does not take them."""

UNREAD_S = 30.0
"""Default for the seconds for which the end of a text is kept: many such ends would be much, too."""

_JOINED_TOKENS = 1024
"""Tokens behind which no more are joined to a piece: with all that may be asked of them it has to be one message."""


class Stream:
    """An asynchronous iterator over the pieces of a request, the last with an ending.

    ``cancel`` (or ``async with``) frees the slot of a stream that has not ended. Iteration raises the ``QspecError``
    that ``fail`` was given when the stream cannot go on.
    """

    def __init__(
        self,
        generation: Generation,
        cancel: Callable[[Stream], None],
        *,
        client: str,
        request_id: str,
        priority: int = 0,
        max_buffered_tokens: int = MAX_BUFFERED_TOKENS,
        unread_s: float = UNREAD_S,
        changed: asyncio.Event | None = None,
        trace: CallTrace = UNTRACED_CALL,
    ) -> None:
        """
        Args:
            generation: the text.
            cancel: gives slot and place back.
            client: who asked.
            request_id: the client's name for the request.
            priority: among the client's own.
            max_buffered_tokens: most tokens that are kept for a client that does not take them.
            unread_s: seconds for which they are kept once the text is complete.
            changed: set when there is something new; None: one of its own.
            trace: of the call that it belongs to.
        """
        self.generation = generation
        self.client = client
        self.request_id = request_id
        self.priority = priority
        self.trace = trace
        self.ending: Ending | None = None
        """Set once the text is complete."""
        self.error: QspecError | None = None
        """What it was failed with."""
        self._cancel = cancel
        self._max_buffered_tokens = max_buffered_tokens
        self._pieces: deque[Piece | QspecError] = deque()
        self._put_tokens = 0  # written by the engine's thread only
        self._taken_tokens = 0  # written by the event loop only
        self._complete = False
        self._read = False
        self._changed = changed or asyncio.Event()
        self._unread_s = unread_s
        self._timer: asyncio.TimerHandle | None = None

    @property
    def buffered_tokens(self) -> int:
        """Tokens that the client has not taken."""
        return self._put_tokens - self._taken_tokens

    @property
    def pressed(self) -> bool:
        """Whether half of what is kept for the client is there: it has to hear of it before it is cut off."""
        return 2 * self.buffered_tokens >= self._max_buffered_tokens

    @property
    def complete(self) -> bool:
        """Whether the last piece, or an error, is there."""
        return self._complete

    @property
    def read(self) -> bool:
        """Whether the client has taken everything."""
        return self._read

    def put(self, piece: Piece) -> bool:
        """Keep a piece for the client; False when it is too far behind and was cut off instead.

        For the engine's thread. The event loop has to be told: ``wake``.
        """
        if self._complete:
            return True  # the event loop has ended it meanwhile
        behind = self.buffered_tokens
        if behind and behind + len(piece.token_ids) > self._max_buffered_tokens:
            self._pieces.clear()
            self.fail(SlowReader(
                f"the client is {behind} tokens behind the text, and {self._max_buffered_tokens} are kept for it: "
                "read faster, or ask for fewer tokens"))
            return False
        self._put_tokens += len(piece.token_ids)
        self._pieces.append(piece)
        self.ending = piece.ending
        self._complete = piece.ending is not None
        return True

    def fail(self, error: QspecError) -> None:
        """End the stream with an error, after what was put already."""
        if not self._complete:
            self._pieces.append(error)
            self.error = error
            self._complete = True

    def wake(self) -> None:
        """Let the reader look again; on the event loop."""
        self._changed.set()
        if self._complete and not self._read and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._unread_s, self._drop_unread)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        if self._read:
            raise StopAsyncIteration
        while (piece := self.poll()) is None:
            self._changed.clear()
            await self._changed.wait()
        return piece

    def poll(self) -> Piece | None:
        """What has come since the last time, as one piece; None where nothing has.

        Raises the error that the stream was failed with, behind what came before it.
        """
        pieces: list[Piece] = []
        tokens = 0
        while tokens < _JOINED_TOKENS and (piece := self._next_piece()) is not None:
            if isinstance(piece, Piece):
                pieces.append(piece)
                tokens += len(piece.token_ids)
                continue
            if pieces:
                self._pieces.append(piece)  # the last that there is: nothing is put behind an error
                break
            self._read = True
            raise piece
        if not pieces:
            return None
        joined = Piece.joined(pieces)
        self._taken_tokens += tokens
        self._read = joined.ending is not None
        return joined

    def _drop_unread(self) -> None:
        if self._pieces:
            self._pieces.clear()
            self._pieces.append(SlowReader(
                f"the client did not take the end of its text within {self._unread_s:g} s: it is not kept any longer"))

    def _next_piece(self) -> Piece | QspecError | None:
        try:  # asking for the length first would not do: the engine's thread may drop everything in between
            return self._pieces.popleft()
        except IndexError:
            return None

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.cancel()

    def cancel(self) -> None:
        """Stop generating; may be called at any time, and again."""
        self._cancel(self)
