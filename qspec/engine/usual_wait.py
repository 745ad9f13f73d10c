"""How long somebody usually waits at the least, by the last few times."""

from __future__ import annotations

from collections import deque

_TIMES = 8


class UsualWait:
    """The last waits."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_TIMES)

    @property
    def shortest(self) -> float:
        """Seconds; 0 before the first."""
        return min(self._last, default=0.0)

    def observe(self, seconds: float) -> None:
        """It took so long this time."""
        self._last.append(seconds)
