"""What rounds take beside their calls: learnt, forgotten, and of consequence."""

from __future__ import annotations

import random

import pytest

from qspec.cost_table import CalibratedCosts, CostTable
from qspec.draft_length import Outlook, best_plan, price
from qspec.round_overhead import RoundOverhead

SHAPE = (1.0,) * 8


def costs() -> CostTable:
    """Drafts gain some per cent."""
    return CostTable(CalibratedCosts(verify=((8, 0.010), (72, 0.013)), draft_step=((8, 0.006),), draft_call_s=0.001))


def test_factors_are_those_of_the_rounds_of_a_kind_and_jitter_is_none() -> None:
    overhead, source = RoundOverhead(), random.Random(1)
    for _ in range(400):
        for drafting, factor in ((True, 1.2), (False, 1.05)):
            overhead.observe(drafting=drafting, calls_s=0.01, seconds=0.01 * (factor + source.uniform(-0.15, 0.15)))
    assert overhead.factor(drafting=True) == pytest.approx(1.2, abs=0.05)
    assert overhead.factor(drafting=False) == pytest.approx(1.05, abs=0.05)


def test_a_disturbance_says_little_and_no_calls_nothing() -> None:
    overhead = RoundOverhead()
    overhead.observe(drafting=True, calls_s=0.01, seconds=5.0)
    assert 1.0 < overhead.factor(drafting=True) <= 1.026
    overhead.observe(drafting=False, calls_s=0.0, seconds=5.0)
    assert overhead.factor(drafting=False) == pytest.approx(1.0, abs=1e-3)


def test_a_kind_that_is_not_run_is_thought_of_like_the_other_again() -> None:
    overhead = RoundOverhead()
    for _ in range(200):
        overhead.observe(drafting=True, calls_s=0.01, seconds=0.014)
    assert overhead.factor(drafting=True) > 1.39
    for _ in range(3000):
        overhead.observe(drafting=False, calls_s=0.01, seconds=0.01)
    assert overhead.factor(drafting=True) == pytest.approx(1.0, abs=0.01)


def test_rounds_that_take_longer_than_their_calls_are_not_drafted_in() -> None:
    table = costs()
    outlooks = [Outlook(0.95, 8)] * 8
    plan = best_plan(outlooks, SHAPE, table)
    assert sum(plan.lengths) > 8
    plain = price(outlooks, [0] * 8, SHAPE, table)
    gain = plan.goodput / plain.goodput
    assert 1.05 < gain < 1.4
    for _ in range(300):
        table.overhead.observe(drafting=True, calls_s=0.01, seconds=0.01 * (gain + 0.05))
        table.overhead.observe(drafting=False, calls_s=0.01, seconds=0.01)
    assert sum(best_plan(outlooks, SHAPE, table).lengths) == 0
    slowed = price(outlooks, plan.lengths, SHAPE, table)
    assert slowed.seconds == pytest.approx(plan.seconds * (gain + 0.05), rel=0.01)


def test_a_plan_is_what_its_lengths_are_priced_at() -> None:
    table = costs()
    for _ in range(30):
        table.overhead.observe(drafting=True, calls_s=0.01, seconds=0.011)
    outlooks = [Outlook(0.97, 8), Outlook(0.5, 3, fixed=True), Outlook(0.9, 5)]
    plan = best_plan(outlooks, SHAPE, table)
    assert plan.seconds == pytest.approx(price(outlooks, plan.lengths, SHAPE, table).seconds)
