"""When what happened to one text: for its usage, for the metrics and for a trace."""

from __future__ import annotations

import time


class RequestTimes:
    """Seconds by ``time.perf_counter``; written by the engine's thread once the text was queued."""

    __slots__ = ("begun", "first_token", "gap_s", "last_token", "queued")

    def __init__(self) -> None:
        self.queued = time.perf_counter()
        self.begun: float | None = None
        """When it first got a slot."""
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.gap_s: float | None = None
        """From the tokens before to the last ones; None while there are none before."""

    def begin(self) -> None:
        """It has a slot. A second one, after a preemption or a loss, does not count."""
        if self.begun is None:
            self.begun = time.perf_counter()

    def tokens_came(self, now: float) -> bool:
        """New tokens came ``now``; whether they are the first."""
        first = self.first_token is None
        if self.last_token is None:
            self.first_token = now
        else:
            self.gap_s = now - self.last_token
        self.last_token = now
        return first

    @property
    def queue_s(self) -> float:
        """Seconds until it got a slot, or until now."""
        return (time.perf_counter() if self.begun is None else self.begun) - self.queued

    @property
    def time_to_first_token_s(self) -> float | None:
        """Seconds until the first token; None before."""
        return None if self.first_token is None else self.first_token - self.queued

    @property
    def prefill_s(self) -> float | None:
        """Seconds from the slot to the first token; None before."""
        if self.first_token is None:
            return None
        return self.first_token - (self.queued if self.begun is None else self.begun)
