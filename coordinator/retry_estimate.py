"""When a refused request may find room: a guess from what was measured, given to each one as a time of its own.

Room arises when a request ends. The interval between ends is measured; before there are any, the time that the request
nearest to its end still needs takes its place. Those who are refused are told to come back one interval after another:
told the same time, all but one of them would be refused again.
"""

from __future__ import annotations

from collections import deque

SHORTEST_S = 0.1
LONGEST_S = 60.0
UNKNOWN_S = 1.0
"""Interval when nothing has ended and nothing runs yet."""
_ENDS = 16


class RetryEstimate:
    """Times are seconds on any clock that never goes back."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_ENDS)
        self._promised = 0.0

    def ended(self, now: float) -> None:
        """A request ended."""
        self._ends.append(now)

    def refused(self, now: float, soonest_end_s: float | None) -> float:
        """Seconds after which a request that is refused now should come back.

        ``soonest_end_s``: at most that long the request nearest to its end still needs, if any has made a token.
        """
        intervals = [] if soonest_end_s is None else [soonest_end_s]
        if len(self._ends) > 1:
            intervals.append((now - self._ends[0]) / len(self._ends))
        interval = max(min(intervals, default=UNKNOWN_S), SHORTEST_S)
        self._promised = min(max(now, self._promised) + interval, now + LONGEST_S)
        return self._promised - now
