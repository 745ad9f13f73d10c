"""Ends a text before the first stop string, without ever showing a part of one.

Text arrives in pieces of any size, and a stop string may straddle them, so the scanner holds back the longest end of
the text that could still become one, and nothing more. The match that counts is the one that is *completed* first
(among several that end at the same character, the longest): that does not depend on how the text was cut into pieces,
and it never has to wait for a longer stop string that may not come.

Many long stop strings cost no more than one: the scanner is an automaton over all of them (Aho and Corasick, "Efficient
string matching", CACM 1975), whose state after each character is the longest end of the text that begins one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache


class _Automaton:
    """Its states are the beginnings of the stop strings; 0 is the empty one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.longer: list[dict[str, int]] = [{}]
        """The states that are longer by one character."""
        self.lengths = [0]
        """Characters of the beginning that a state stands for."""
        self.completed: list[str | None] = [None]
        """The longest stop string that a state ends with, if it ends with one."""
        self.shorter = [0]
        """The longest state that a state ends with, but itself."""
        for stop in stops:
            self.completed[self._add(stop)] = stop
        self._link()

    def after(self, state: int, character: str) -> int:
        """The state behind one more character."""
        while (longer := self.longer[state].get(character)) is None:
            if not state:
                return 0
            state = self.shorter[state]
        return longer

    def _add(self, stop: str) -> int:
        state = 0
        for character in stop:
            if character not in self.longer[state]:
                self.longer[state][character] = len(self.longer)
                self.longer.append({})
                self.lengths.append(self.lengths[state] + 1)
                self.completed.append(None)
                self.shorter.append(0)
            state = self.longer[state][character]
        return state

    def _link(self) -> None:
        """Fill in ``shorter``, the shortest states first, and what follows from it for ``completed``."""
        states = deque(self.longer[0].values())
        while states:
            state = states.popleft()
            for character, longer in self.longer[state].items():
                shorter = self.shorter[longer] = self.after(self.shorter[state], character)
                self.completed[longer] = self.completed[longer] or self.completed[shorter]
                states.append(longer)


_automaton = lru_cache(maxsize=64)(_Automaton)
"""The texts of a request have the same stop strings."""


class StopScanner:
    """Scans one text for stop strings, each of them not empty."""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._automaton = _automaton(tuple(stops)) if stops else None
        self._state = 0
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._matched

    def push(self, text: str) -> str:
        """Take the next piece; returns what is now known to stand before every stop string. Nothing after a match."""
        automaton = self._automaton
        if automaton is None:
            return text
        if self._matched is not None:
            return ""
        for end, character in enumerate(text, len(self._held) + 1):
            self._state = automaton.after(self._state, character)
            if (stop := automaton.completed[self._state]) is not None:
                decided, self._held, self._matched = (self._held + text)[: end - len(stop)], "", stop
                return decided
        whole = self._held + text
        cut = len(whole) - automaton.lengths[self._state]
        self._held = whole[cut:]
        return whole[:cut]

    def flush(self) -> str:
        """The text is over: what was held back is no stop string after all."""
        rest, self._held, self._state = self._held, "", 0
        return rest
