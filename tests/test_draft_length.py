"""The draft lengths that are chosen are the best ones for the costs: held to brute force."""

from __future__ import annotations

import itertools
import random

import pytest

from qspec.cost_table import CalibratedCosts, CostTable
from qspec.draft_length import LEAST_GAIN, Load, Outlook, best_plan, expected_tokens, price

LONGEST = 4
FLAT = [1.0] * LONGEST


def random_costs(source: random.Random, *, affine: bool) -> CostTable:
    """Any rising cost of rows, stairs too; a draft step with a fixed part and one per sequence, or a concave one."""
    seconds, verify = source.uniform(0.01, 0.05), []
    row = source.choice([0.0, 0.0005, 0.003, 0.02])
    for rows in range(1, 33):
        seconds += source.choice([0.0, 2 * row])
        verify.append((rows, seconds))
    fixed, each = source.uniform(0.0, 0.03), source.choice([0.0, 0.001, 0.01])
    step = tuple((n, max(fixed + each * (n if affine else n**0.5), 1e-6)) for n in range(1, 9))
    return CostTable(CalibratedCosts(
        verify=tuple(verify), draft_step=step, draft_call_s=source.choice([0.0, 0.002]),
        verify_context_s=1e-6, draft_context_s=1e-6))


def random_outlooks(source: random.Random) -> list[Outlook]:
    """Up to three sequences, some of which ask for a length of their own."""
    return [
        Outlook(
            acceptance=source.choice([0.0, 0.3, 0.6, 0.9, 1.0, source.random()]), cap=source.randint(0, LONGEST),
            fixed=source.random() < 0.2)
        for _ in range(source.randint(1, 3))
    ]


@pytest.mark.parametrize("affine", [True, False])
def test_no_lengths_are_better_than_those_chosen(affine: bool) -> None:
    """The optimum for a step of a fixed part and one per sequence; within half a per cent for a concave one."""
    source = random.Random(int(affine))
    drafted = 0
    for _ in range(200):
        outlooks, costs = random_outlooks(source), random_costs(source, affine=affine)
        shape = [source.uniform(0.8, 1.2) for _ in range(LONGEST)]
        load = Load(rows=source.choice([0, 0, 3]), context=source.randint(0, 2000))
        plan = best_plan(outlooks, shape, costs, load)
        priced = price(outlooks, plan.lengths, shape, costs, load)
        assert (plan.tokens, plan.seconds) == (pytest.approx(priced.tokens), pytest.approx(priced.seconds))
        every = itertools.product(*[range(o.cap if o.fixed else 0, o.cap + 1) for o in outlooks])
        best = max(price(outlooks, lengths, shape, costs, load).goodput for lengths in every)
        none = price(outlooks, [o.cap if o.fixed else 0 for o in outlooks], shape, costs, load).goodput
        least = best if best > none * (1 + LEAST_GAIN) * 1.01 else none
        assert plan.goodput >= least * (1 - (1e-9 if affine else 5e-3))
        assert plan.goodput == pytest.approx(none) or plan.goodput > none * (1 + LEAST_GAIN)
        assert all(k == o.cap if o.fixed else 0 <= k <= o.cap for k, o in zip(plan.lengths, outlooks, strict=True))
        drafted += sum(plan.lengths)
    assert drafted > 100, "or nothing was put to the test"


def test_while_prompts_are_on_their_way_time_is_worth_what_everybody_makes_of_it() -> None:
    source = random.Random(2)
    drafted = 0
    for _ in range(200):
        outlooks, costs = random_outlooks(source), random_costs(source, affine=True)
        joining, context = source.randint(1, 3), source.randint(0, 2000)
        plan = best_plan(outlooks, FLAT, costs, Load(context=context, joining=joining))
        mean = sum(outlook.acceptance for outlook in outlooks) / len(outlooks)
        everybody = [*outlooks, *[Outlook(mean, LONGEST)] * joining]
        load = Load(context=round(context * len(everybody) / len(outlooks)))
        worth = best_plan(everybody, FLAT, costs, load).goodput
        every = itertools.product(*[range(o.cap if o.fixed else 0, o.cap + 1) for o in outlooks])
        plans = [price(outlooks, lengths, FLAT, costs, Load(context=context)) for lengths in every]
        values = [each.tokens - worth * each.seconds for each in plans]
        none = plans[0].tokens - worth * plans[0].seconds
        best = max(values) if max(values) > none + LEAST_GAIN * plans[0].tokens else none
        assert plan.tokens - worth * plan.seconds == pytest.approx(best, abs=1e-6)
        drafted += sum(plan.lengths)
    assert drafted > 50, "or nothing was put to the test"


def test_a_few_texts_do_not_hold_up_a_batch_that_makes_tokens_cheaply() -> None:
    costs = CostTable(CalibratedCosts(
        verify=((1, 0.020), (4, 0.023), (16, 0.09)), draft_step=((1, 0.006), (4, 0.012)), draft_call_s=0.001))
    outlooks = [Outlook(0.97, 4)]
    assert best_plan(outlooks, FLAT, costs).lengths != (0,)
    assert best_plan(outlooks, FLAT, costs, Load(joining=3)).lengths == (0,)


def linear(*, call: float = 0.001, step: float = 0.002, verify: float = 0.03, row: float = 0.001) -> CostTable:
    """Costs that rise with rows, and steps that cost the same for any number of sequences."""
    return CostTable(CalibratedCosts(
        verify=((1, verify + row), (101, verify + 101 * row)), draft_step=((1, step), (64, step)), draft_call_s=call))


def test_the_price_is_that_of_the_formula() -> None:
    outlooks = [Outlook(0.5, 4), Outlook(0.9, 4)]
    plan = price(outlooks, [1, 3], FLAT, linear())
    assert plan.tokens == pytest.approx((1 + 0.5) + (1 + 0.9 + 0.81 + 0.729))
    assert plan.seconds == pytest.approx((0.001 + 3 * 0.002) + (0.03 + 6 * 0.001))
    assert plan.goodput == pytest.approx(plan.tokens / plan.seconds)


def test_expected_tokens_is_the_mean_of_a_simulated_round() -> None:
    source = random.Random(1)
    for acceptance, length in ((0.0, 3), (0.5, 4), (0.9, 8), (1.0, 5), (0.7, 0)):
        rounds = [
            1 + next((i for i in range(length) if source.random() >= acceptance), length) for _ in range(20_000)
        ]
        assert expected_tokens(acceptance, length) == pytest.approx(sum(rounds) / len(rounds), abs=0.06)


def test_no_draft_where_drafting_cannot_pay() -> None:
    assert best_plan([Outlook(0.99, 4)], FLAT, linear(call=0.0, step=0.05, row=0.0)).lengths == (0,)
    assert best_plan([Outlook(0.0, 4)], FLAT, linear()).lengths == (0,)
    assert best_plan([Outlook(1.0, 4)], FLAT, linear()).lengths == (4,)
    assert best_plan([Outlook(1.0, 0)], FLAT, linear()).lengths == (0,)
    assert best_plan([Outlook(1.0, 4)], [], linear()).lengths == (0,)


def test_sequences_differ_in_length() -> None:
    plan = best_plan([Outlook(0.95, 4), Outlook(0.3, 4), Outlook(0.95, 2)], FLAT, linear(row=0.004))
    long, short, capped = plan.lengths
    assert long > capped == 2 > short


def test_positions_differ_in_length() -> None:
    """Where later drafts stand less often than the first, drafts are shorter."""
    costs = linear()
    assert best_plan([Outlook(0.9, 4)], FLAT, costs).lengths > best_plan(
        [Outlook(0.9, 4)], [1.0, 1.0, 0.2, 0.2], costs).lengths == (2,)


def test_prompts_that_are_entered_are_no_reason_to_draft() -> None:
    """A long pass has to be paid anyway: it does not make drafts cheaper than they are."""
    costs = linear(step=0.025, row=0.015)
    for rows in (0, 20, 80):
        assert best_plan([Outlook(0.8, 4)], FLAT, costs, Load(rows=rows)).lengths == (0,)
