"""How far the start of a server is: the workers' stages and the calibration, of all pairs, as one fraction."""

from __future__ import annotations

import threading
from collections.abc import Callable

from qspec.status import StatusEvent

_CALIBRATION_SHARE = 0.15
_STEP = 0.05


class StartProgress:
    """Weighs the stages of all workers into one fraction that never goes back; may be told from any thread."""

    def __init__(self, roles: tuple[str, ...], tell: Callable[[str, float], None]) -> None:
        self._share = (1 - _CALIBRATION_SHARE) / len(roles)
        self._fractions = dict.fromkeys(roles, 0.0)
        self._tell = tell
        self._texts: set[str] = set()
        self._told = 0.0
        self._lock = threading.Lock()

    def worker(self, role: str, stage: StatusEvent, ready: bool) -> None:
        """A worker has told where it is."""
        with self._lock:
            if role not in self._fractions:
                return
            done = 1.0 if ready else stage.fraction or 0.0
            self._fractions[role] = max(self._fractions[role], min(done, 1.0))
            text = f"{role}: {'ready' if ready else stage.text}"
            self._show(text, self._share * sum(self._fractions.values()))

    def calibrating(self, text: str, fraction: float | None) -> None:
        """The engine measures what a round costs."""
        with self._lock:
            self._show(text, 1 - _CALIBRATION_SHARE * (1 - min(max(fraction or 0.0, 0.0), 1.0)))

    def _show(self, text: str, fraction: float) -> None:
        """Tell a new stage, or a step ahead; not every percent."""
        fraction = max(round(fraction, 2), self._told)
        if text not in self._texts or fraction >= self._told + _STEP:
            self._texts.add(text)
            self._told = fraction
            self._tell(text, fraction)


class PairsProgress:
    """Several pairs that start, as one fraction; a single one is told as it is. May be told from any thread."""

    def __init__(self, pairs: int, tell: Callable[[str, float], None]) -> None:
        self._fractions = [0.0] * pairs
        self._tell = tell
        self._lock = threading.Lock()

    def of(self, index: int, name: str) -> Callable[[str, float], None]:
        """What the progress of one of them tells; of one beyond those that are started first nothing is told."""
        def tell(text: str, fraction: float) -> None:
            if index >= len(self._fractions):
                return
            with self._lock:
                self._fractions[index] = max(self._fractions[index], fraction)
                pair = f"pair {name}, " if len(self._fractions) > 1 else ""
                self._tell(f"{pair}{text}", sum(self._fractions) / len(self._fractions))

        return tell
