"""How requests to the server end, counted on the event loop, whichever engine ran them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from coordinator.metrics.histogram import Histogram

WHOLE = (
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0,
)
"""Seconds of whole requests; vLLM's buckets."""


@dataclass(slots=True, eq=False)
class RequestMetrics:
    """See the module."""

    end_to_end: Histogram = field(default_factory=lambda: Histogram(WHOLE))
    finished: Counter[str] = field(default_factory=Counter)
    """Texts that came to their end, by its reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Texts that were let in and did not, by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were not let in, by reason."""

    def text_finished(self, reason: str, seconds: float) -> None:
        """A text came to its end."""
        self.finished[reason] += 1
        self.end_to_end.observe(seconds)

    def text_failed(self, reason: str) -> None:
        """A text that had been let in did not come to its end."""
        self.failed[reason] += 1

    def request_refused(self, reason: str) -> None:
        """A request was not let in."""
        self.refused[reason] += 1
