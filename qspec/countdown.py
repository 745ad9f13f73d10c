"""Time that runs out: for how long anybody may still want an answer."""

from __future__ import annotations

import math
import time


class Countdown:
    """So many seconds from now; None: it never ends."""

    def __init__(self, seconds: float | None) -> None:
        self._ends = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time has run out."""
        return time.monotonic() >= self._ends
