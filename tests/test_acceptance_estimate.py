"""Acceptance is learnt, by sequence and by position, and followed when it changes."""

from __future__ import annotations

import random

import pytest

from qspec.acceptance_estimate import AcceptanceEstimate, PopulationAcceptance


def accepted(source: random.Random, probability: float, length: int) -> int:
    """One round's outcome."""
    return next((i for i in range(length) if source.random() >= probability), length)


@pytest.mark.parametrize("true", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("length", [1, 4])
def test_the_estimate_finds_the_truth_and_follows_it(true: float, length: int) -> None:
    source = random.Random(2)
    estimate, population = AcceptanceEstimate(), PopulationAcceptance()

    def mean_after(rounds: int, probability: float) -> float:
        seen = []
        for _ in range(rounds):
            outcome = accepted(source, probability, length)
            population.age()
            population.update(length, outcome, estimate.probability(population.probability))
            estimate.update(length, outcome)
            seen.append(estimate.probability(population.probability))
            assert 0.0 < seen[-1] < 1.0
        return sum(seen[rounds // 2 :]) / (rounds - rounds // 2)

    assert mean_after(2000, true) == pytest.approx(true, abs=0.03)
    assert mean_after(2000, 0.3) == pytest.approx(0.3, abs=0.03)


def test_a_new_sequence_is_expected_to_be_like_the_others() -> None:
    population = PopulationAcceptance()
    assert population.probability == pytest.approx(0.8)
    assert AcceptanceEstimate().probability(0.7) == pytest.approx(0.7)
    for _ in range(100):
        population.update(4, 0, 0.8)
    assert AcceptanceEstimate().probability(population.probability) < 0.1


def test_drafts_behind_a_rejection_say_nothing() -> None:
    one, other = AcceptanceEstimate(), AcceptanceEstimate()
    one.update(3, 2)
    other.update(8, 2)
    assert one == other
    before = one.probability(0.5)
    one.update(0, 0)
    assert one.probability(0.5) == before
    assert (one.idle_rounds, other.idle_rounds) == (1, 0)


def test_what_is_long_ago_weighs_little_yet_never_nothing() -> None:
    estimate = AcceptanceEstimate()
    for _ in range(200):
        estimate.update(4, 0)
    for _ in range(1000):
        estimate.update(0, 0)
    assert 0.3 < estimate.probability(0.8) < 0.6
    estimate.update(2, 2)
    assert estimate.probability(0.8) < 0.7, "one lucky probe decides nothing"
    assert estimate.idle_rounds == 0


def test_positions_are_told_apart_and_good_sequences_are_not_mistaken_for_good_positions() -> None:
    source = random.Random(3)
    population = PopulationAcceptance()
    for _ in range(3000):
        first = source.random() < 0.9
        outcome = int(first) + (1 if first and source.random() < 0.45 else 0)
        population.update(2, outcome, 0.9)
    first_factor, second_factor, unknown = population.shape(3)
    assert (first_factor, second_factor, unknown) == (
        pytest.approx(1.0, abs=0.05), pytest.approx(0.5, abs=0.05), 1.0)
    population = PopulationAcceptance()
    for _ in range(2000):
        probability = source.choice([0.2, 0.95])
        population.update(6, accepted(source, probability, 6), probability)
    assert population.shape(6) == pytest.approx([1.0] * 6, abs=0.1)
