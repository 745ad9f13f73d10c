"""Requests that end verifiers: found among those that only ran beside them, and not tried for ever.

A request may itself be what a verifier dies of, and would go on to end every one that it is given. It is given up after
three that were lost while it ran, one after the other and without a token in between. All requests of a lost verifier
are prefilled again at once, so innocent ones would be in all three; therefore those that lost two are suspects, and are
tried one at a time: it is the turn of the next when one has got a token, or has ended.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator.stream import Stream
from qspec.errors import QspecError

MOST_LOSSES = 3
"""Verifiers that a request may lose before it gets a token."""


class Trials:
    """See the module. Used under the router's lock."""

    def __init__(self, has_place: Callable[[Stream], bool]) -> None:
        """``has_place``: whether a request is with an engine, and has not ended."""
        self._has_place = has_place
        self._last: Stream | None = None

    def may_run(self, stream: Stream) -> bool:
        """Whether a request may be placed now; a suspect for which that is so is on trial then."""
        if not _suspect(stream):
            return True
        last = self._last
        if last is not None and last is not stream and self._has_place(last) and _suspect(last):
            return False
        self._last = stream
        return True


def verdict(stream: Stream) -> QspecError | None:
    """Why a request that has lost its verifier is not tried again, if so."""
    if _losses(stream) < MOST_LOSSES:
        return None
    return QspecError(
        f"{MOST_LOSSES} verifiers were lost one after the other while they ran this request: it is not tried again")


def _losses(stream: Stream) -> int:
    return stream.generation.sequence.losses_without_progress


def _suspect(stream: Stream) -> bool:
    """Whether one more loss would be the last."""
    return _losses(stream) == MOST_LOSSES - 1
