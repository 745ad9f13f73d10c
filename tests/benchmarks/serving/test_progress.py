"""The measure of starvation."""

from __future__ import annotations

import pytest

from benchmarks.serving.progress import evenness, tokens_between
from tests.benchmarks.serving.streams import even_stream, stream


def test_streams_in_step_are_perfectly_even() -> None:
    found = evenness([even_stream(40, every=0.1) for _ in range(5)])
    assert found.most_over_median == found.least_over_median == 1.0
    assert found.longest_silence_s == pytest.approx(0.1)
    assert found.samples == 6  # of 7: at 0.5 s the median is 5 tokens, which is too few to say anything


def test_a_stream_that_gets_nothing_shows_at_once() -> None:
    starving = stream([(0.0, 1), (9.0, 1)])
    found = evenness([*(even_stream(100, every=0.1) for _ in range(4)), starving])
    assert found.least_over_median == 0.0
    assert found.most_over_median == pytest.approx(1.0)
    assert found.longest_silence_s == 9.0
    assert found.median_silence_s == pytest.approx(0.1)


def test_a_stream_that_is_served_first_shows_at_once() -> None:
    found = evenness([*(even_stream(50, every=0.2) for _ in range(4)), even_stream(150, every=0.05)])
    assert found.most_over_median == pytest.approx(4.0, rel=0.1)
    assert found.least_over_median == 1.0


def test_who_began_earlier_is_not_ahead() -> None:
    found = evenness([even_stream(60, start=0.0, every=0.1), even_stream(60, start=3.0, every=0.1)])
    assert found.together_s == pytest.approx(5.9 - 3.0)
    assert found.most_over_median == pytest.approx(1.0, abs=0.06)


def test_streams_that_take_turns_are_compared_with_those_beside_them() -> None:
    waves = [[even_stream(60, start=7.0 * wave, every=0.1) for _ in range(4)] for wave in range(3)]
    found = evenness([one for wave in waves for one in wave])
    assert (found.together_s, found.most_over_median, found.least_over_median) == (0.0, 1.0, 1.0)
    assert found.window_s == pytest.approx(1.6)
    assert found.samples > 3
    waves[1][0] = stream([(7.0, 1), (7.1, 1), (12.9, 1)])
    starved = evenness([one for wave in waves for one in wave])
    assert starved.least_over_median is not None and starved.least_over_median < 0.1


def test_streams_that_never_run_together_are_not_judged() -> None:
    found = evenness([even_stream(5), even_stream(5, start=50.0)])
    assert (found.samples, found.together_s) == (0, 0.0)
    assert found.most_over_median is found.least_over_median is None


def test_progress_counts_tokens_and_not_messages() -> None:
    assert tokens_between(stream([(1.0, 2), (2.0, 3), (3.0, 4)]), 1.0, 3.0) == 7
