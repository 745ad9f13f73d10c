"""What a stream keeps for its reader, and how it hands that over."""

from __future__ import annotations

import pytest

from coordinator.generation import Generation, Piece
from coordinator.stream import Stream
from qspec.errors import Unavailable
from qspec.interfaces import Sampling, TokenLogprobs
from qspec.sequence import Sequence
from tests.coordinator.stack_in_memory import NumberText


def stream(**options: int) -> Stream:
    sequence = Sequence(request_id="r", prompt=[1], sampling=Sampling(), max_tokens=10_000)
    return Stream(Generation(sequence, NumberText(), ()), lambda _: None, client="a", request_id="r", **options)


def piece(*tokens: int, text: str = "") -> Piece:
    return Piece(text=text, token_ids=tokens, logprobs=tuple(
        TokenLogprobs(logprob=-float(token)) for token in tokens))


def test_whoever_reads_gets_all_that_has_come_at_once() -> None:
    kept = stream()
    first = Piece(text="a", token_ids=(1,), prompt_token_ids=(7, 8), choice=2)
    for each in (first, piece(2, 3, text="bc"), piece(4, text="d")):
        assert kept.put(each)
    read = kept.poll()
    assert read is not None
    assert (read.text, read.token_ids, read.prompt_token_ids, read.choice) == ("abcd", (1, 2, 3, 4), (7, 8), 2)
    assert [of.logprob for of in read.logprobs] == [-2.0, -3.0, -4.0]
    assert kept.poll() is None and kept.buffered_tokens == 0 and not kept.read


def test_one_piece_is_handed_over_as_it_is() -> None:
    kept, only = stream(), piece(5)
    kept.put(only)
    assert kept.poll() is only


def test_an_error_comes_behind_what_was_there_before_it() -> None:
    kept = stream()
    kept.put(piece(1))
    kept.put(piece(2))
    kept.fail(Unavailable("gone", 1.0))
    read = kept.poll()
    assert read is not None and read.token_ids == (1, 2) and not kept.read
    with pytest.raises(Unavailable, match="gone"):
        kept.poll()
    assert kept.read


def test_what_is_joined_stays_small_enough_for_a_message() -> None:
    kept = stream(max_buffered_tokens=5000)
    for _ in range(5):
        kept.put(piece(*range(600)))
    sizes = []
    while (read := kept.poll()) is not None:
        sizes.append(len(read.token_ids))
    assert sizes == [1200, 1200, 600]


def test_a_reader_is_pressed_once_half_of_what_is_kept_for_it_is_there() -> None:
    kept = stream(max_buffered_tokens=6)
    kept.put(piece(1, 2))
    assert not kept.pressed
    kept.put(piece(3))
    assert kept.pressed
    kept.poll()
    assert not kept.pressed
