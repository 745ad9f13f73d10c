"""How requests end that do not get their whole text, in one word: for metrics, logs and traces."""

from __future__ import annotations

import asyncio

from qspec.errors import (
    ContractViolation,
    DeadlineExceeded,
    InvalidInput,
    QueueFull,
    SlowReader,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)

CANCELLED = "cancelled"
INTERNAL = "internal"
_REASONS: dict[type[BaseException], str] = {
    InvalidInput: "invalid_argument",
    QueueFull: "queue_full",
    Unavailable: "unavailable",
    DeadlineExceeded: "deadline_exceeded",
    SlowReader: "slow_reader",
    Unauthenticated: "unauthenticated",
    ContractViolation: INTERNAL,
    WorkerLost: "unavailable",
    asyncio.CancelledError: CANCELLED,
}
REFUSALS = (
    "queue_full", "invalid_argument", "unavailable", "deadline_exceeded", "unauthenticated", CANCELLED, INTERNAL)
"""Why requests are not let in."""
FAILURES = (CANCELLED, "deadline_exceeded", "slow_reader", "queue_full", "unavailable", INTERNAL)
"""Why texts that were let in do not come to their end; ``queue_full``: the place went to another client."""


def reason_of(error: BaseException | None) -> str:
    """The word for an error; None stands for a client that did not want the text any more."""
    if error is None:
        return CANCELLED
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), INTERNAL)
