"""A histogram that costs next to nothing to feed: for the engine's thread, which must not wait for a scrape.

The client library's own takes a lock and a microsecond or two for each observation; this one is a list that one thread
writes and any thread copies. A copy that is taken while an observation is under way may lack it in the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts of values by bucket. Written by one thread."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: upper ends of the buckets, rising; a value equal to one is in its bucket."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, as if it had come ``times`` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """(upper end, values up to it) as the exposition format has them, the last one ``+Inf`` with all values."""
        total, cumulative = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), list(self._counts), strict=True):
            total += count
            cumulative.append((bound, float(total)))
        return cumulative
