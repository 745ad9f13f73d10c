"""The stop scanner against its definition: the text before the match that is completed first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.stop_strings import StopScanner


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, written as a search over every end of a match."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def scan(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.flush(), scanner.matched


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=5), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4),
)
def test_equals_definition_however_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    assert scan(pieces, stops) == cut("".join(pieces), stops)


@given(
    pieces=st.lists(st.text(alphabet="ab", max_size=3), max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_holds_back_only_what_could_begin_a_stop(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    pushed, shown = "", ""
    for piece in pieces:
        pushed += piece
        shown += scanner.push(piece)
        if scanner.matched is not None:
            return
        held = pushed[len(shown):]
        assert pushed.startswith(shown)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_stop_across_pieces_is_never_shown() -> None:
    scanner = StopScanner(["\n\nEND"])
    assert scanner.push("one\n") == "one"
    assert scanner.push("\nEN") == ""
    assert scanner.push("D two") == ""
    assert scanner.matched == "\n\nEND"
    assert scanner.flush() == ""
    assert scanner.push("more") == ""


def test_false_alarm_is_released() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("EN") == ""
    assert scanner.push("d") == "ENd"
    assert scanner.matched is None


def test_no_stops_hold_nothing_back() -> None:
    assert StopScanner([]).push("text") == "text"


def test_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopScanner(["a", ""])


@given(
    text=st.text(alphabet="ab", max_size=40),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=12), min_size=4, max_size=16),
)
def test_many_long_stops_equal_the_definition_character_by_character(text: str, stops: list[str]) -> None:
    assert scan(list(text), stops) == cut(text, stops)


def test_the_longest_of_those_that_end_together_counts() -> None:
    for stops in (["b", "ab", "xab"], ["xab", "ab", "b"]):
        scanner = StopScanner(stops)
        assert scanner.push("wxa") + scanner.push("b") == "w"
        assert scanner.matched == "xab"


def test_many_long_stops_cost_no_more_than_one() -> None:
    """A text that nearly begins all of them, and keeps the scanner falling back: counted in steps, not in time."""
    stops = ["a" * (255 - index) + "b" for index in range(16)]
    scanner = StopScanner(stops)
    assert scanner._automaton is not None
    falls = 0

    class Counting(list[int]):
        def __getitem__(self, index: int) -> int:  # type: ignore[override]
            nonlocal falls
            falls += 1
            return super().__getitem__(index)

    scanner._automaton.shorter = Counting(scanner._automaton.shorter)
    text = ("a" * 300 + "c") * 20
    assert "".join(map(scanner.push, text)) + scanner.flush() == text
    assert falls <= len(text)
