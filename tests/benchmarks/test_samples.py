"""Figures of several texts at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.samples import Sample, rate_together
from tests.benchmarks.texts import plain_sample


def arriving(*arrivals: tuple[float, int]) -> Sample:
    return replace(plain_sample((1, 2, 3)), arrivals=arrivals)


def test_texts_count_while_all_of_them_are_being_decoded() -> None:
    early = arriving((10.0, 1), (11.0, 4), (12.0, 4), (13.0, 1))
    late = arriving((10.5, 1), (11.5, 2), (12.5, 2), (14.5, 2), (20.0, 2))
    assert rate_together([early, late]) == pytest.approx((4 + 1) / 2 + (2 + 2) / 2)
    assert rate_together([late]) == pytest.approx(8 / 9.5)


def test_texts_that_end_together_have_the_same_rate_whoever_is_read_first() -> None:
    texts = [arriving(*((step + shift, 2) for step in range(1, 21))) for shift in (0.0, 0.3, 0.6)]
    assert rate_together(texts) == pytest.approx(6.0)


@pytest.mark.parametrize("other", [((2.0, 1), (3.0, 1)), ((1.5, 1), (2.5, 1))])
def test_texts_that_are_not_decoded_at_once_have_no_such_rate(other: tuple[tuple[float, int], ...]) -> None:
    with pytest.raises(ValueError, match="for long enough"):
        rate_together([arriving((1.0, 1), (2.0, 1)), arriving(*other)])
