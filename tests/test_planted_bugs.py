"""The joint test of ``test_acceptance_law`` is worth something: it fails on the bugs that such code has had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qspec import acceptance, noise, sampling
from qspec.acceptance import Decision, decide, draft_token
from qspec.interfaces import AcceptanceRule, Sampling
from qspec.logit_adjustment import adjust
from qspec.noise import NoiseKey, Purpose
from tests.markov_text import Round, law, p_value, random_pair, write_many

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = random_pair(3, seed=4, apart=2.5)
LENGTH = 3
TEXTS = 1500
NOTICED_BELOW = 1e-6

Plant = Callable[[pytest.MonkeyPatch], Round]


def p_value_of(functions: Round, rule: AcceptanceRule) -> float:
    """The joint test at temperature 1 with two drafts per round."""
    texts = write_many(PAIR, lambda n: Sampling(temperature=1.0, seed=n, rule=rule), [2], LENGTH, TEXTS, functions)
    return p_value(texts, law(PAIR, Sampling(temperature=1.0), LENGTH))


def one_noise_for_draft_and_accept(patch: pytest.MonkeyPatch) -> Round:
    """The uniform number of the acceptance test is the one that chose the draft."""

    def shared(key: NoiseKey, position: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
        return noise.uniform(key, position, Purpose.DRAFT, count)

    patch.setattr(acceptance, "uniform", shared)
    return Round()


def reseeding_per_draw(patch: pytest.MonkeyPatch) -> Round:
    """The position is dropped: every draw of a purpose starts the generator anew."""

    def reseeded(key: NoiseKey, position: int, purpose: Purpose, count: int) -> NDArray[np.float64]:
        return noise.gumbel(key, 0, purpose, count)

    patch.setattr(sampling, "gumbel", reseeded)
    return Round()


def residual_is_the_target(patch: pytest.MonkeyPatch) -> Round:
    """After a rejection the token is drawn from the target itself."""
    patch.setattr(acceptance, "residual_weights", lambda target, draft: target)
    return Round()


def residual_without_the_positive_part(patch: pytest.MonkeyPatch) -> Round:
    """After a rejection the token is drawn from |target - draft|."""
    patch.setattr(acceptance, "residual_weights", lambda target, draft: (target - draft).abs())
    return Round()


def one_hot_acceptance_of_a_sampled_token(patch: pytest.MonkeyPatch) -> Round:
    """The token counts as certain when it is accepted, and as sampled when the residual is made."""
    patch.setattr(acceptance, "acceptance_probability", lambda target, draft: target)
    return Round()


def sampled_distribution_of_a_greedy_token(patch: pytest.MonkeyPatch) -> Round:
    """The drafter took its most probable token, but hands on the distribution that it did not draw from."""

    def draft(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
        return int(logits.argmax()), draft_token(logits, how, position)[1]

    return Round(draft=draft)


def bonus_from_the_drafter(patch: pytest.MonkeyPatch) -> Round:
    """The token behind the last accepted draft comes from the drafter's model."""

    def bonus(
        drafts: Sequence[int], probs: Tensor | None, logits: Tensor, how: Sampling, position: int
    ) -> Decision:
        own = PAIR.draft[drafts[-1]]
        return decide(drafts, probs, torch.cat([logits[:-1], own[None]]), how, position)

    return Round(decide=bonus)


def unfiltered_draft_distribution(patch: pytest.MonkeyPatch) -> Round:
    """The distribution handed on is not the one that was drawn from."""

    def draft(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
        token, _ = draft_token(logits, how, position)
        return token, (logits / 2).softmax(-1)

    return Round(draft=draft)


FILTERS = {
    "min_p": Sampling(temperature=3.0, min_p=0.59),
    "typical_p": Sampling(temperature=2.0, typical_p=0.55),
}


def without_filters(how: Sampling) -> Sampling:
    """The temperature alone."""
    return replace(how, min_p=0.0, typical_p=1.0)


def drawn_without_filters(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
    """The drafter draws from the whole distribution and hands on the filtered one."""
    token, _ = draft_token(logits, without_filters(how), position)
    return token, draft_token(logits, how, position)[1]


def handed_on_without_filters(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
    """The drafter draws from the filtered distribution and hands on the whole one."""
    token, _ = draft_token(logits, how, position)
    return token, draft_token(logits, without_filters(how), position)[1]


def decided_without_filters(
    drafts: Sequence[int], probs: Tensor | None, logits: Tensor, how: Sampling, position: int
) -> Decision:
    """The drafter filters, the verifier does not."""
    return decide(drafts, probs, logits, without_filters(how), position)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("functions", [
    Round(draft=drawn_without_filters), Round(draft=handed_on_without_filters), Round(decide=decided_without_filters),
], ids=["drawn", "handed on", "decided"])
def test_filters_on_one_side_only_are_noticed(filters: str, functions: Round) -> None:
    base = replace(FILTERS[filters], rule=AcceptanceRule.REJECTION)
    texts = write_many(PAIR, lambda n: replace(base, seed=n), [2], LENGTH, TEXTS, functions)
    assert p_value(texts, law(PAIR, base, LENGTH)) < NOTICED_BELOW


ADJUSTED = {
    "repetition_penalty": Sampling(temperature=1.0, repetition_penalty=4.0),
    "presence_penalty": Sampling(temperature=1.0, presence_penalty=2.0),
    "frequency_penalty": Sampling(temperature=1.0, frequency_penalty=1.5),
    "min_tokens": Sampling(temperature=1.0, min_tokens=2, ending_token_ids=(1,)),
}


def history_without_drafts(logits: Tensor, how: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
    """Every row sees the committed tokens alone."""
    committed = tokens[: len(tokens) - len(logits) + 1]
    return torch.cat([adjust(row[None], how, committed, prompt_len) for row in logits])


def history_with_all_drafts(logits: Tensor, how: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
    """Every row sees all drafts, those behind it included."""
    return torch.cat([adjust(row[None], how, tokens, prompt_len) for row in logits])


def prompt_counted_as_generated(logits: Tensor, how: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
    """There is no difference between prompt and text."""
    return adjust(logits, how, tokens, 0)


def unadjusted_distribution_handed_on(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
    """The drafter draws under a bias, and hands on the distribution without it."""
    token, _ = draft_token(logits, how, position)
    without = logits.clone()
    for biased, bias in how.logit_bias:
        without[:, biased] -= bias
    return token, draft_token(without, how, position)[1]


def p_value_under(base: Sampling, rule: AcceptanceRule, functions: Round) -> float:
    """The joint test with three drafts per round."""
    texts = write_many(PAIR, lambda n: replace(base, seed=n, rule=rule), [3], LENGTH, TEXTS, functions)
    return p_value(texts, law(PAIR, base, LENGTH))


@pytest.mark.parametrize("rule", AcceptanceRule)
@pytest.mark.parametrize("field", ADJUSTED)
@pytest.mark.parametrize("history", [history_without_drafts, history_with_all_drafts])
def test_a_history_with_wrong_drafts_is_noticed(
    history: Callable[[Tensor, Sampling, Tensor, int], Tensor], field: str, rule: AcceptanceRule
) -> None:
    assert p_value_under(ADJUSTED[field], rule, Round(adjust_target=history)) < NOTICED_BELOW


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty", "min_tokens"])
def test_a_prompt_that_counts_as_generated_is_noticed(field: str) -> None:
    functions = Round(adjust_target=prompt_counted_as_generated)
    assert p_value_under(ADJUSTED[field], AcceptanceRule.REJECTION, functions) < NOTICED_BELOW


def test_a_bias_on_one_side_only_is_noticed() -> None:
    biased = Sampling(temperature=1.0, logit_bias=((0, 1.5),))
    functions = Round(draft=unadjusted_distribution_handed_on)
    assert p_value_under(biased, AcceptanceRule.REJECTION, functions) < NOTICED_BELOW


@pytest.mark.parametrize("rule", AcceptanceRule)
@pytest.mark.parametrize("field", ADJUSTED)
def test_a_drafter_that_knows_no_history_costs_nothing_but_time(field: str, rule: AcceptanceRule) -> None:
    functions = Round(adjust_draft=lambda logits, how, tokens, prompt_len: logits)
    assert p_value_under(ADJUSTED[field], rule, functions) > 1e-3


@pytest.mark.parametrize(
    "plant",
    [
        one_noise_for_draft_and_accept,
        reseeding_per_draw,
        residual_is_the_target,
        residual_without_the_positive_part,
        one_hot_acceptance_of_a_sampled_token,
        sampled_distribution_of_a_greedy_token,
        bonus_from_the_drafter,
        unfiltered_draft_distribution,
    ],
)
def test_rejection_bug_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert p_value_of(plant(monkeypatch), AcceptanceRule.REJECTION) < NOTICED_BELOW


@pytest.mark.parametrize("plant", [reseeding_per_draw, bonus_from_the_drafter])
def test_coupled_bug_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert p_value_of(plant(monkeypatch), AcceptanceRule.COUPLED) < NOTICED_BELOW


@pytest.mark.parametrize("rule", AcceptanceRule)
def test_nothing_is_noticed_where_nothing_is_planted(rule: AcceptanceRule) -> None:
    assert p_value_of(Round(), rule) > 1e-3


def test_the_drafter_of_these_tests_is_often_wrong() -> None:
    distance = (PAIR.target.softmax(-1) - PAIR.draft.softmax(-1)).abs().sum(-1) / 2
    assert float(distance.min()) > 0.2
