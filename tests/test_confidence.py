"""What a confidence is worth is learnt; one that says nothing ends no draft."""

from __future__ import annotations

import random

import pytest

from qspec.confidence import ConfidenceWorth
from qspec.early_stop import sigmoid


def learnt(slope: float, intercept: float, tokens: int = 6000) -> ConfidenceWorth:
    """After so many tokens that stand by this law."""
    source, worth = random.Random(1), ConfidenceWorth()
    for _ in range(tokens):
        x = source.gauss(1.0, 1.5)
        worth.update([sigmoid(x)], 1, int(source.random() < sigmoid(intercept + slope * x)))
    return worth


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, 1.0), (1.0, -0.5), (0.3, 3.0)])
def test_the_law_is_found(slope: float, intercept: float) -> None:
    worth = learnt(slope, intercept)
    assert (worth.slope, worth.intercept) == (pytest.approx(slope, abs=0.15), pytest.approx(intercept, abs=0.25))
    rule = worth.early_stop(0.3, 2.0, better=0.5)
    assert (rule.least_drawn, rule.least_fed) == (0.3, 1.0)
    assert rule.intercept == pytest.approx(worth.intercept + 0.5)


@pytest.mark.parametrize("intercept", [-3.0, 0.0, 3.0, 50.0])
def test_a_confidence_that_says_nothing_ends_no_draft(intercept: float) -> None:
    for tokens in (0, 10, 100, 1000, 6000):
        rule = learnt(0.0, intercept, tokens).early_stop(0.5, 0.5)
        assert (rule.least_drawn, rule.least_fed) == (0.0, 0.0)


def test_confidences_behind_a_rejection_are_left_alone() -> None:
    one, other = ConfidenceWorth(), ConfidenceWorth()
    one.update([0.9, 0.8, 0.1, 0.2], 3, 1)
    other.update([0.9, 0.8], 2, 1)
    assert one == other
    one.update([0.3], 0, 0)  # a distribution that nothing was drawn from
    assert one == other
