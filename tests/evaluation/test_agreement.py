"""Agreement and loss against values computed by hand, and against their identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.evaluation.agreement import NO_AGREEMENT, Agreement, TextLoss, compare_logits, text_loss


def logits_of(*rows: tuple[float, ...]) -> Tensor:
    """Logits, with an offset that must not matter, of these distributions."""
    return torch.tensor(rows).log() + 3.0


def random_logits(seed: int, positions: int, vocab: int) -> Tensor:
    return 3.0 * torch.randn(positions, vocab, generator=torch.Generator().manual_seed(seed))


def test_two_positions_by_hand() -> None:
    draft = logits_of((0.5, 0.25, 0.25), (0.1, 0.6, 0.3))
    target = logits_of((0.25, 0.5, 0.25), (0.2, 0.7, 0.1))
    found = compare_logits(draft, target)
    assert (found.positions, found.same_argmax) == (2, 1)
    assert found.greedy == 0.5
    assert found.acceptance == pytest.approx((0.75 + 0.8) / 2, rel=1e-6)
    first = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    second = 0.2 * math.log(2) + 0.7 * math.log(7 / 6) + 0.1 * math.log(1 / 3)
    assert found.divergence == pytest.approx((first + second) / 2, rel=1e-5), "KL(target ‖ draft), not the other way"


def test_a_model_beside_itself_agrees() -> None:
    logits = random_logits(0, 300, 40)
    found = compare_logits(logits, logits + 5.0)
    assert (found.positions, found.greedy) == (300, 1.0)
    assert found.acceptance == pytest.approx(1.0, abs=1e-6)
    assert found.divergence == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), positions=st.integers(1, 200), vocab=st.integers(2, 30))
def test_acceptance_is_one_minus_the_total_variation_distance(seed: int, positions: int, vocab: int) -> None:
    draft, target = random_logits(seed, positions, vocab), random_logits(seed + 1, positions, vocab)
    found = compare_logits(draft, target)
    p, q = target.double().softmax(-1), draft.double().softmax(-1)
    assert found.acceptance == pytest.approx(1 - float((p - q).abs().sum(-1).mean()) / 2, abs=1e-5)
    assert found.divergence == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4, abs=1e-6)
    # Pinsker: TV² ≤ KL / 2
    assert 2 * (1 - found.acceptance) ** 2 <= found.divergence + 1e-6
    assert compare_logits(target, draft).acceptance == pytest.approx(found.acceptance, abs=1e-6)


def test_texts_are_added_up() -> None:
    draft, target = random_logits(1, 200, 30), random_logits(2, 200, 30)
    parts = [compare_logits(draft[rows], target[rows]) for rows in (slice(0, 7), slice(7, 150), slice(150, 200))]
    total, whole = sum(parts, NO_AGREEMENT), compare_logits(draft, target)
    assert (total.positions, total.same_argmax) == (whole.positions, whole.same_argmax)
    assert total.overlap_sum == pytest.approx(whole.overlap_sum)
    assert total.divergence_sum == pytest.approx(whole.divergence_sum)


def test_what_the_target_never_says_costs_nothing_and_what_the_draft_excludes_costs_all() -> None:
    never = torch.tensor([[0.0, 0.0, -math.inf]])
    anything = torch.zeros(1, 3)
    assert compare_logits(anything, never).divergence == pytest.approx(math.log(1.5))
    assert compare_logits(never, anything).divergence == math.inf
    assert compare_logits(never, anything).acceptance == pytest.approx(2 / 3)


def test_logits_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="two shapes"):
        compare_logits(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="rows of logits"):
        text_loss(torch.zeros(2, 3), torch.tensor([1, 2, 0]))


def test_the_loss_of_a_text_by_hand() -> None:
    logits = logits_of((0.5, 0.25, 0.25), (0.1, 0.8, 0.1), (0.9, 0.05, 0.05))
    found = text_loss(logits, torch.tensor([0, 2, 1]))
    assert found.tokens == 2
    assert found.nats == pytest.approx(-math.log(0.25) - math.log(0.8), rel=1e-6)
    assert found.perplexity == pytest.approx((0.25 * 0.8) ** -0.5, rel=1e-6)


def test_the_loss_of_a_long_text_does_not_depend_on_how_it_is_cut() -> None:
    logits, tokens = random_logits(3, 401, 20), torch.arange(401) % 20
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[1:], reduction="sum")
    found = text_loss(logits, tokens)
    assert found.tokens == 400
    assert found.nats == pytest.approx(float(expected), rel=1e-6)


def test_nothing_is_lost_on_an_even_guess() -> None:
    assert text_loss(torch.zeros(65, 16), torch.zeros(65, dtype=torch.int64)).perplexity == pytest.approx(16)
    assert TextLoss(tokens=1, nats=1e6).perplexity == math.inf


def test_the_sum_begins_with_nothing() -> None:
    one = Agreement(positions=2, same_argmax=1, overlap_sum=1.5, divergence_sum=0.25)
    assert one + NO_AGREEMENT == one
