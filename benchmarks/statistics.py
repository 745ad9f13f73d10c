"""Median, spread and confidence interval of a handful of numbers, the same in every run on the same numbers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

BOOTSTRAP_SEED = 20240607
RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles; the share of the numbers below each is interpolated linearly."""

    lower_quartile: float
    median: float
    upper_quartile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A median with its bootstrap confidence interval."""

    low: float
    median: float
    high: float


def quantile(numbers: Sequence[float], share: float) -> float:
    """The number that ``share`` of ``numbers`` lie below, interpolated (Hyndman and Fan's type 7)."""
    if not numbers or not 0 <= share <= 1:
        raise ValueError("a quantile needs numbers, and a share from 0 to 1")
    ordered = sorted(numbers)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def spread(numbers: Sequence[float]) -> Spread:
    """Median and quartiles of at least one number."""
    return Spread(
        lower_quartile=quantile(numbers, 0.25), median=quantile(numbers, 0.5), upper_quartile=quantile(numbers, 0.75))


def median_interval(
    numbers: Sequence[float], *, seed: int = BOOTSTRAP_SEED, resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The median of at least one number with its percentile bootstrap interval (Efron 1979).

    The numbers have to be independent: one per prompt.
    """
    if not numbers:
        raise ValueError("an interval needs numbers")
    draw = random.Random(seed)
    medians = [statistics.median(draw.choices(numbers, k=len(numbers))) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    return Interval(
        low=quantile(medians, tail), median=statistics.median(numbers), high=quantile(medians, 1 - tail))
