"""The draft length that is chosen is the best one for the costs, and acceptance is learnt."""

from __future__ import annotations

import itertools
import random

import pytest

from qspec.draft_length import (
    AcceptanceEstimate,
    CostTable,
    Curve,
    DraftLengthPolicy,
    Outlook,
    best_draft_length,
    expected_tokens,
    goodput,
)

LONGEST = 8


def costs(*, draft_call: float, draft_step: float, verify_call: float, verify_row: float) -> CostTable:
    """Linear costs, measured at a few places."""
    table = CostTable()
    for sequences, length in itertools.product((1, 4), (1, 2, LONGEST)):
        table.observe_draft(sequences, length, draft_call + draft_step * length)
    for rows in (1, 2, 5, 9, 40):
        table.verify.observe(rows, verify_call + verify_row * rows)
    return table


CHEAP = {"draft_call": 0.001, "draft_step": 0.002, "verify_call": 0.03, "verify_row": 0.001}


def test_curve_interpolates_and_extends() -> None:
    curve = Curve()
    assert curve.at(3) == 0.0
    curve.observe(2, 0.4)
    assert (curve.at(1), curve.at(2), curve.at(9)) == (0.4, 0.4, 0.4)
    curve.observe(6, 0.8)
    assert curve.at(6) == 0.8
    assert curve.at(3) == pytest.approx(0.5)
    assert curve.at(10) == pytest.approx(1.2)
    assert curve.at(1) == pytest.approx(0.3)
    steep = Curve()
    steep.observe(4, 0.2)
    steep.observe(5, 1.2)
    assert steep.at(1) == pytest.approx(0.1), "never nothing, let alone less"


def test_curve_follows_slowly_and_an_outlier_hardly_moves_it() -> None:
    curve = Curve()
    curve.observe(1, 0.1)
    curve.observe(1, 100.0)
    assert curve.at(1) <= 0.12
    for _ in range(200):
        curve.observe(1, 0.05)
    assert curve.at(1) == pytest.approx(0.05, rel=1e-3)
    for _ in range(200):
        curve.observe(1, 0.15)
    assert curve.at(1) == pytest.approx(0.15, rel=1e-3), "what stays slow is believed in the end"


def test_expected_tokens_is_the_mean_of_a_simulated_round() -> None:
    source = random.Random(1)
    for acceptance, length in ((0.0, 3), (0.5, 4), (0.9, 8), (1.0, 5), (0.7, 0)):
        rounds = [
            1 + next((i for i in range(length) if source.random() >= acceptance), length) for _ in range(20_000)
        ]
        assert expected_tokens(acceptance, length) == pytest.approx(sum(rounds) / len(rounds), abs=0.06)


@pytest.mark.parametrize("draft_step", [0.0005, 0.002, 0.01, 0.05])
@pytest.mark.parametrize("verify_row", [0.0, 0.002, 0.02])
@pytest.mark.parametrize(
    "outlooks",
    [[(0.9, 8)], [(0.6, 8)], [(0.1, 8)], [(0.9, 2)], [(0.9, 0)], [(0.95, 8), (0.5, 8), (0.8, 3), (0.2, 1)]],
)
def test_the_best_length_is_that_of_brute_force(
    outlooks: list[tuple[float, int]], draft_step: float, verify_row: float
) -> None:
    def tokens_per_second(length: int) -> float:
        lengths = [min(length, cap) for _, cap in outlooks]
        tokens = sum(sum(a**i for i in range(k + 1)) for (a, _), k in zip(outlooks, lengths, strict=True))
        draft = 0.001 + draft_step * max(lengths) if max(lengths) else 0.0
        return tokens / (draft + 0.03 + verify_row * (sum(lengths) + len(lengths)))

    table = costs(draft_call=0.001, draft_step=draft_step, verify_call=0.03, verify_row=verify_row)
    promised = [Outlook(acceptance, cap) for acceptance, cap in outlooks]
    for length in range(LONGEST + 1):
        assert goodput(promised, length, table) == pytest.approx(tokens_per_second(length))
    best = best_draft_length(promised, LONGEST, table)
    assert tokens_per_second(best) == pytest.approx(max(tokens_per_second(k) for k in range(LONGEST + 1)))
    assert best <= max(cap for _, cap in outlooks)


def test_no_draft_where_drafting_cannot_pay() -> None:
    slow = costs(draft_call=0.0, draft_step=0.05, verify_call=0.03, verify_row=0.0)
    assert best_draft_length([Outlook(0.99, LONGEST)], LONGEST, slow) == 0
    hopeless = costs(**CHEAP)
    assert best_draft_length([Outlook(0.0, LONGEST)], LONGEST, hopeless) == 0
    assert best_draft_length([Outlook(1.0, LONGEST)], LONGEST, hopeless) == LONGEST
    assert best_draft_length([Outlook(1.0, LONGEST)], 0, hopeless) == 0


def test_without_a_draft_at_most_one_round_in_a_hundred_probes() -> None:
    policy = DraftLengthPolicy(LONGEST)
    policy.costs = costs(draft_call=0.0, draft_step=0.05, verify_call=0.03, verify_row=0.0)
    chosen = [policy.choose([Outlook(0.9, LONGEST)]) for _ in range(5000)]
    assert set(chosen) == {0, 1}
    assert 40 <= sum(chosen) <= 50
    assert DraftLengthPolicy(0).choose([Outlook(0.9, 0)]) == 0


def test_where_drafting_pays_it_is_not_interrupted() -> None:
    policy = DraftLengthPolicy(LONGEST)
    policy.costs = costs(**CHEAP)
    assert {policy.choose([Outlook(0.95, LONGEST)]) for _ in range(500)} == {LONGEST}


@pytest.mark.parametrize("true", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("length", [1, 4])
def test_the_acceptance_estimate_finds_the_truth_and_follows_it(true: float, length: int) -> None:
    source = random.Random(2)
    estimate = AcceptanceEstimate()
    assert estimate.probability == pytest.approx(0.8)

    def mean_after(rounds: int, acceptance: float) -> float:
        seen = []
        for _ in range(rounds):
            estimate.update(length, next((i for i in range(length) if source.random() >= acceptance), length))
            assert 0.0 <= estimate.probability <= 1.0
            seen.append(estimate.probability)
        return sum(seen[rounds // 2 :]) / (rounds - rounds // 2)

    assert mean_after(3000, true) == pytest.approx(true, abs=0.03)
    assert mean_after(3000, 0.3) == pytest.approx(0.3, abs=0.03)


def test_drafts_behind_a_rejection_say_nothing() -> None:
    one, other = AcceptanceEstimate(), AcceptanceEstimate()
    one.update(3, 2)
    other.update(8, 2)
    assert one.probability == other.probability
    before = one.probability
    one.update(0, 0)
    assert one.probability == before
