"""Medians, quartiles and intervals against numpy and against what they must do."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import median_interval, quantile, spread

NUMBERS = st.lists(st.floats(0.01, 1000.0), min_size=1, max_size=30)


@given(NUMBERS, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(numbers: list[float], share: float) -> None:
    assert quantile(numbers, share) == pytest.approx(float(numpy.quantile(numbers, share)), rel=1e-9)


def test_the_spread_does_not_depend_on_the_order() -> None:
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2.0, 3.0, 4.0)


def test_an_interval_is_the_same_in_every_run_and_holds_the_median() -> None:
    numbers = [1.1, 0.9, 1.3, 1.2, 1.0, 1.15]
    first, second = median_interval(numbers), median_interval(numbers)
    assert first == second
    assert first.median == pytest.approx(1.125)
    assert 0.9 <= first.low < first.median < first.high <= 1.3


def test_a_wider_confidence_widens_the_interval() -> None:
    numbers = [float(number) for number in range(20)]
    narrow, wide = median_interval(numbers, confidence=0.5), median_interval(numbers, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_the_median_of_the_law_about_as_often_as_it_says() -> None:
    draws = numpy.random.default_rng(5).lognormal(size=(200, 25))
    found = [median_interval(list(map(float, row)), resamples=200) for row in draws]
    covered = sum(interval.low <= 1.0 <= interval.high for interval in found)
    assert 180 <= covered <= 199


def test_equal_numbers_have_no_spread() -> None:
    found = median_interval([2.0, 2.0, 2.0])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("call", [lambda: spread([]), lambda: median_interval([]), lambda: quantile([1.0], 1.5)])
def test_nothing_has_no_statistics(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]
