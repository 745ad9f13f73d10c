"""The estimate of what decoding would take without drafts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.metrics.plain_decoding import PlainDecoding
from qspec.cost_table import CalibratedCosts, CostTable
from qspec.draft_policy import DraftLengthPolicy
from qspec.interfaces import StageTimings
from qspec.round_report import RoundReport


def policy(verify_context_s: float = 0.0) -> DraftLengthPolicy:
    made = DraftLengthPolicy(8)
    made.costs = CostTable(CalibratedCosts(
        verify=((1, 0.010), (2, 0.014)), draft_step=((1, 0.003),), verify_context_s=verify_context_s))
    return made


DRAFTED = RoundReport(
    seconds=0.030, draft_s=0.012, draft_rpc_s=0.001, draft_timings=StageTimings(), verify_s=0.016,
    verify_rpc_s=0.001, verify_timings=StageTimings(), outcomes=((4, 3),), context=100, prefill_tokens=0)


def test_a_drafted_round_is_priced_as_plain_rounds_of_one_token() -> None:
    plain = PlainDecoding()
    plain.observe(DRAFTED, policy())
    assert plain.actual_s == pytest.approx(0.030)
    assert plain.plain_s == pytest.approx(4 * (0.010 + 0.002))  # four tokens, each with the round's own 2 ms
    assert plain.speedup == pytest.approx(plain.plain_s / plain.actual_s)


def test_a_batch_shares_its_plain_rounds_and_context_costs() -> None:
    plain = PlainDecoding()
    plain.observe(replace(DRAFTED, outcomes=((4, 3), (1, 1))), policy(verify_context_s=1e-5))
    assert plain.plain_s == pytest.approx(6 / 2 * (0.014 + 0.001 + 0.002))


def test_a_round_without_drafts_is_its_own_estimate() -> None:
    plain = PlainDecoding()
    plain.observe(replace(DRAFTED, draft_timings=None, draft_s=0.0, outcomes=((0, 0),)), DraftLengthPolicy(8))
    assert plain.actual_s == plain.plain_s == pytest.approx(0.030)
    assert plain.speedup == 1.0


def test_rounds_that_say_nothing_are_left_out() -> None:
    plain = PlainDecoding()
    plain.observe(replace(DRAFTED, prefill_tokens=7), policy())
    plain.observe(replace(DRAFTED, outcomes=()), policy())
    plain.observe(DRAFTED, DraftLengthPolicy(8))  # nobody knows what a plain round costs
    assert plain.actual_s == plain.plain_s == 0.0
    assert plain.speedup == 1.0


def test_costs_are_asked_again_when_told() -> None:
    plain, costly = PlainDecoding(), policy()
    plain.observe(DRAFTED, costly)
    before = plain.plain_s
    costly.costs = CostTable(CalibratedCosts(verify=((1, 0.110),), draft_step=((1, 0.003),)))
    plain.observe(DRAFTED, costly)
    assert plain.plain_s == pytest.approx(2 * before)
    plain.forget_costs()
    plain.observe(DRAFTED, costly)
    assert plain.plain_s == pytest.approx(2 * before + 4 * 0.112)
