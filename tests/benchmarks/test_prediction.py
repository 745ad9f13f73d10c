"""The formula, and that it takes its terms out of what a stack reports without the prefill."""

from __future__ import annotations

import pytest

from benchmarks.prediction import acceptance, decode_costs, predict
from tests.benchmarks.texts import DRAFT_S, PLAIN_S, RPC_S, VERIFY_S, plain_sample, speculative_sample

TEXT = tuple(range(100, 117))
"""17 tokens: the first, then 4 rounds of k = 4 with 4, 4, 1 and 3 accepted."""
SPECULATIVE = speculative_sample(TEXT, (4, 4, 1, 3), draft_length=4)


def test_costs_leave_the_prefill_out() -> None:
    costs = decode_costs([SPECULATIVE, SPECULATIVE])
    assert costs is not None
    assert (costs.rounds, costs.tokens, costs.drafted) == (8, 32, 32)
    assert costs.verify_pass_s == pytest.approx(VERIFY_S)
    assert costs.draft_step_s == pytest.approx(DRAFT_S)
    assert costs.decode_s == pytest.approx(8 * (4 * DRAFT_S + VERIFY_S))
    assert costs.rpc_s == pytest.approx(8 * RPC_S)
    assert costs.rounds_per_draft_length == (0, 0, 0, 0, 8)


def test_acceptance_counts_what_was_tried() -> None:
    # Position 0: 4 of 4; 1: 3 of 4; 2: 3 of 3; 3: 2 of 3. Drafts behind a rejection were not tried.
    assert SPECULATIVE.speculation is not None
    assert acceptance([SPECULATIVE.speculation]) == pytest.approx(12 / 14)


def test_without_drafts_there_is_no_acceptance() -> None:
    stats = plain_sample(TEXT).speculation
    assert stats is not None
    assert acceptance([stats]) is None


def test_the_prediction_is_the_formula() -> None:
    costs, plain = decode_costs([SPECULATIVE]), decode_costs([plain_sample(TEXT)])
    assert costs is not None
    assert plain is not None
    found = predict(costs, plain.verify_pass_s, 0.8)
    alpha, k, c, v = 0.8, 4, DRAFT_S / PLAIN_S, VERIFY_S / PLAIN_S
    expected = (1 - alpha ** (k + 1)) / (1 - alpha)
    assert found.c == pytest.approx(c)
    assert (found.v, found.draft_length) == pytest.approx((v, k))
    assert found.expected_tokens == pytest.approx(expected)
    assert found.speed_up == pytest.approx(expected / (k * c + v))


def test_plain_decoding_is_its_own_unit() -> None:
    plain = decode_costs([plain_sample(TEXT)])
    assert plain is not None
    found = predict(plain, plain.verify_pass_s, None)
    assert (found.c, found.draft_length) == (None, 0)
    assert (found.v, found.expected_tokens, found.speed_up) == pytest.approx((1, 1, 1))


def test_mixed_draft_lengths_are_weighed_by_their_rounds() -> None:
    short = speculative_sample(TEXT[:5], (1, 1), draft_length=1)
    costs = decode_costs([SPECULATIVE, short])
    assert costs is not None
    assert costs.rounds_per_draft_length == (0, 2, 0, 0, 4)
    found = predict(costs, PLAIN_S, 1.0)
    assert found.expected_tokens == pytest.approx((2 * 2 + 4 * 5) / 6)
    assert found.draft_length == pytest.approx((2 * 1 + 4 * 4) / 6)


def test_a_text_of_one_token_has_no_decoding() -> None:
    assert decode_costs([plain_sample(TEXT[:1])]) is None
    assert decode_costs([]) is None
