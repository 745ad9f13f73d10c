"""When a refused request is told to come back."""

from __future__ import annotations

import pytest

from coordinator.retry_estimate import LONGEST_S, SHORTEST_S, RetryEstimate


def test_interval_between_ends_is_what_is_told() -> None:
    estimate = RetryEstimate()
    for end in range(11):
        estimate.ended(100.0 + 2 * end)
    assert estimate.refused(122.0, None) == pytest.approx(2.0)


def test_nobody_is_told_the_same_time() -> None:
    estimate = RetryEstimate()
    assert [estimate.refused(50.0, 3.0) for _ in range(3)] == [3.0, 6.0, 9.0]
    assert estimate.refused(58.0, 3.0) == pytest.approx(4.0)  # one is due at 59, the next place is at 62
    assert estimate.refused(500.0, 3.0) == 3.0


def test_request_nearest_to_its_end_counts_after_a_long_rest() -> None:
    estimate = RetryEstimate()
    estimate.ended(1.0)
    estimate.ended(2.0)
    assert estimate.refused(10_000.0, 0.5) == 0.5


def test_bounds() -> None:
    estimate = RetryEstimate()
    assert estimate.refused(0.0, 1e-9) == SHORTEST_S
    assert RetryEstimate().refused(0.0, None) == 1.0
    assert max(estimate.refused(0.0, 50.0) for _ in range(1000)) == LONGEST_S
