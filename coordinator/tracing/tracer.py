"""What the service tells a tracer, and the one that does nothing: nobody pays for traces that nobody wants.

A text has one trace, of the call that it belongs to. The workers are not in it with spans of their own: a batch is many
requests' at once, and travels on a stream that was opened before any of them, so there is no one context that it could
carry. What a worker did for a text is told by the stage timings in its answers, and is in the text's spans.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from coordinator.stream import Stream

Metadata = Iterable[tuple[str, str | bytes]]
"""A call's metadata, which may carry the context of the caller's trace."""


class CallTrace(Protocol):
    """The trace of one call; for the event loop."""

    def refused(self, reason: str) -> None:
        """The request was not let in; the call is over."""
        ...

    def text_ended(self, stream: Stream) -> None:
        """One of its texts is over, however it ended."""
        ...

    def close(self) -> None:
        """The call is over; may be called again."""
        ...


class Tracer(Protocol):
    """Makes traces."""

    def call(self, metadata: Metadata) -> CallTrace:
        """A call of Generate has come in."""
        ...

    def close(self) -> None:
        """Send what is left, within a second or two; blocks."""
        ...


class _UntracedCall:
    """Of a call that nobody follows."""

    def refused(self, reason: str) -> None:
        """See ``CallTrace``."""

    def text_ended(self, stream: Stream) -> None:
        """See ``CallTrace``."""

    def close(self) -> None:
        """See ``CallTrace``."""


UNTRACED_CALL: CallTrace = _UntracedCall()


class Untraced:
    """Tracing that is off."""

    def call(self, metadata: Metadata) -> CallTrace:
        """See ``Tracer``."""
        return UNTRACED_CALL

    def close(self) -> None:
        """See ``Tracer``."""
