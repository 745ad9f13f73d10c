"""When to ask again: only a server that says so (google.rpc.RetryInfo), and only before a text has begun."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from qspec.errors import DeadlineExceeded, QspecError, QueueFull, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a full, loading or stopping server is asked again."""

    attempts: int | None = 5
    """Calls in all; 1 never asks again, None has no limit."""
    longest_wait_s: float = 60.0
    """A server that asks for a longer pause than this is not asked again."""
    errors: tuple[type[QspecError], ...] = (QueueFull, Unavailable)
    """After which of the errors that carry a time."""
    jitter: float = 0.1
    """Longest share of the time that is waited on top, so that clients do not come back together."""


NEVER = RetryPolicy(attempts=1)
"""Every refusal is an error."""


@dataclass(slots=True)
class Attempts:
    """The calls for one text, within one deadline."""

    policy: RetryPolicy
    deadline_s: float | None
    """Seconds for all calls and the pauses between them."""
    clock: Callable[[], float] = time.monotonic
    _begun: float = field(init=False)
    _made: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def left_s(self) -> float | None:
        """What the next call may take; raises ``DeadlineExceeded`` when nothing is left."""
        if self.deadline_s is None:
            return None
        left = self._begun + self.deadline_s - self.clock()
        if left <= 0:
            raise DeadlineExceeded(f"the deadline of {self.deadline_s:g} s passed before the server took the request")
        return left

    def pause_s(self, error: QspecError) -> float | None:
        """How long to wait before the next call; None where ``error`` stands."""
        if not isinstance(error, self.policy.errors) or not isinstance(error, QueueFull | Unavailable):
            return None
        wait = error.retry_after_s
        if wait is None or wait > self.policy.longest_wait_s or self._made == self.policy.attempts:
            return None
        wait *= 1 + random.random() * self.policy.jitter
        if self.deadline_s is not None and self._begun + self.deadline_s - self.clock() <= wait:
            return None
        self._made += 1
        return wait
