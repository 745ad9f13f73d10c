"""The histogram against the definition of its buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.metrics.histogram import Histogram

VALUES = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 99.0]), st.integers(1, 5)))


@given(VALUES)
def test_buckets_hold_the_values_up_to_their_ends(values: list[tuple[float, int]]) -> None:
    bounds = (0.5, 1.0, 2.0)
    histogram = Histogram(bounds)
    for value, times in values:
        histogram.observe(value, times)
    expected = [
        (str(bound), float(sum(times for value, times in values if value <= bound))) for bound in bounds
    ]
    assert histogram.buckets() == [*expected, ("+Inf", float(sum(times for _, times in values)))]
    assert histogram.sum == sum(value * times for value, times in values)
