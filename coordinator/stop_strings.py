"""Ends a text before the first stop string, without ever showing a part of one.

Text arrives in pieces of any size, and a stop string may straddle them, so the scanner holds back the longest end of
the text that could still become one, and nothing more. The match that counts is the one that is *completed* first
(among several that end at the same character, the longest): that does not depend on how the text was cut into pieces,
and it never has to wait for a longer stop string that may not come.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Scans one text for stop strings, each of them not empty."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._matched

    def push(self, text: str) -> str:
        """Take the next piece; returns what is now known to stand before every stop string. Nothing after a match."""
        if self._matched is not None:
            return ""
        self._held += text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, at, self._matched = min(found)
            decided, self._held = self._held[:at], ""
            return decided
        keep = self._length_of_possible_start()
        cut = len(self._held) - keep
        decided, self._held = self._held[:cut], self._held[cut:]
        return decided

    def flush(self) -> str:
        """The text is over: what was held back is no stop string after all."""
        rest, self._held = self._held, ""
        return rest

    def _length_of_possible_start(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
