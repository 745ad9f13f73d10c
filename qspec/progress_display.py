"""Progress on standard error: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from qspec.interfaces import Progress

_WIDTH = 24
_PLAIN_STEP = 0.25


class ProgressDisplay:
    """Shows how far something is; ``close`` leaves the terminal clean."""

    def __init__(self, err: TextIO = sys.stderr) -> None:
        self._err = err
        self._bar = err.isatty()
        self._drawn = 0
        self._next_plain = 0.0

    def show(self, stage: str, fraction: float) -> None:
        """``fraction`` from 0 to 1 of the whole is done, at the moment ``stage``."""
        fraction = min(max(fraction, 0.0), 1.0)
        if self._bar:
            done = round(fraction * _WIDTH)
            line = f"[{'#' * done}{'.' * (_WIDTH - done)}] {fraction:4.0%} {stage}"[:100]
            self._err.write("\r" + line.ljust(self._drawn))
            self._drawn = len(line)
        elif fraction >= self._next_plain:
            self._err.write(f"{fraction:4.0%} {stage}\n")
            self._next_plain = (fraction // _PLAIN_STEP + 1) * _PLAIN_STEP
        self._err.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._err.write("\r" + " " * self._drawn + "\r")
            self._err.flush()
        self._drawn = 0


@contextmanager
def showing_progress() -> Iterator[Progress]:
    """A ``Progress`` callback that draws on standard error, and takes its bar away in the end.

    What has no share of its own (a stage) is shown at the share that was reached.
    """
    display, reached = ProgressDisplay(sys.stderr), 0.0

    def progress(text: str, share: float | None) -> None:
        nonlocal reached
        reached = reached if share is None else share
        display.show(text, reached)

    try:
        yield progress
    finally:
        display.close()
