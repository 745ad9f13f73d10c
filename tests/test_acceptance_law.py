"""Both acceptance rules leave the target's distribution as it is: exactly for one token, jointly for whole texts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec.acceptance import acceptance_probability, decide, draft_token, residual_weights
from qspec.interfaces import AcceptanceRule, Sampling
from qspec.noise import NoiseKey, Purpose
from qspec.sampling import draw, token_probs
from tests.markov_text import MarkovPair, Round, Text, law, p_value, random_pair, write, write_many

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 7
REJECTED_BELOW = 1e-3
PAIR = random_pair(3, seed=4, apart=1.5)
LENGTH = 4
TEXTS = 900


def distributions() -> list[Tensor]:
    """Random ones, sparse ones, one-hot ones, and two that share no token."""
    generator = torch.Generator().manual_seed(3)
    some = list(torch.randn(4, VOCAB_SIZE, generator=generator).mul(2).double().softmax(-1))
    some += [token_probs(row[None].log(), Sampling(temperature=1.0, top_k=3))[0] for row in some[:2]]
    some += list(torch.eye(VOCAB_SIZE, dtype=torch.float64)[[0, 4]])
    some += [torch.tensor(row, dtype=torch.float64) for row in ([0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0.25, 0, 0.75, 0, 0])]
    return some


@pytest.mark.parametrize(("target", "draft"), list(itertools.product(distributions(), repeat=2)))
def test_rejection_leaves_the_target_exactly(target: Tensor, draft: Tensor) -> None:
    accepted = draft * acceptance_probability(target, draft)
    torch.testing.assert_close(accepted, torch.minimum(draft, target), rtol=0, atol=1e-15)
    reject_mass = 1.0 - float(accepted.sum())
    residual = residual_weights(target, draft)
    assert float(residual.sum()) > 0.0
    made = accepted + reject_mass * residual / residual.sum()
    torch.testing.assert_close(made, target, rtol=0, atol=1e-12)


def test_a_draft_that_the_target_cannot_produce_is_rejected() -> None:
    logits = torch.full((2, 4), float("-inf"))
    logits[:, 2] = 0.0
    for rule in AcceptanceRule:
        sampling = Sampling(temperature=1.0, rule=rule)
        decision = decide([1], torch.tensor([[0.0, 1.0, 0.0, 0.0]]), logits, sampling, 5)
        assert (decision.accepted, decision.next_token) == (0, 2)


def test_equal_distributions_accept_every_draft() -> None:
    pair = MarkovPair(PAIR.target, PAIR.target)
    for rule, seed in itertools.product(AcceptanceRule, range(40)):
        sampling = Sampling(temperature=0.9, seed=seed, rule=rule)
        token, probs = draft_token(pair.draft[:1], sampling, 1)
        assert decide([token], probs, pair.target[[0, token]], sampling, 1).accepted == 1


@pytest.mark.parametrize("apart", [0.3, 1.0, 3.0])
def test_coupled_acceptance_has_its_lower_bound_and_rejection_its_exact_value(apart: float) -> None:
    generator = torch.Generator().manual_seed(5)
    target, other = torch.randn(2, 1, 12, generator=generator).double()
    draft = target + apart * other
    target_probs, draft_probs = target.softmax(-1)[0], draft.softmax(-1)[0]
    distance = float((target_probs - draft_probs).abs().sum() / 2)
    count, stood = 1500, dict.fromkeys(AcceptanceRule, 0)
    for rule, position in itertools.product(AcceptanceRule, range(count)):
        sampling = Sampling(temperature=1.0, rule=rule, seed=8)
        token, probs = draft_token(draft, sampling, position)
        stood[rule] += decide([token], probs, target.expand(2, -1), sampling, position).accepted
    deviation = 4 * (0.25 / count) ** 0.5
    assert abs(stood[AcceptanceRule.REJECTION] / count - (1 - distance)) < deviation
    assert stood[AcceptanceRule.COUPLED] / count > (1 - distance) / (1 + distance) - deviation


FILTERS = {
    "plain": Sampling(temperature=1.0),
    "cold": Sampling(temperature=0.6),
    "top_k": Sampling(temperature=1.3, top_k=2),
    "top_p": Sampling(temperature=1.0, top_p=0.8),
    "min_p": Sampling(temperature=3.0, min_p=0.59),
    "typical_p": Sampling(temperature=2.0, typical_p=0.55),
    "repetition_penalty": Sampling(temperature=1.0, repetition_penalty=2.5),
    "presence_penalty": Sampling(temperature=1.0, presence_penalty=1.5),
    "frequency_penalty": Sampling(temperature=1.0, frequency_penalty=0.8),
    "logit_bias": Sampling(temperature=1.0, logit_bias=((0, 0.9), (2, -0.7))),
    "min_tokens": Sampling(temperature=1.0, min_tokens=2, ending_token_ids=(1,)),
    "everything": Sampling(
        temperature=1.5, top_k=3, min_p=0.05, repetition_penalty=1.4, presence_penalty=-0.5, frequency_penalty=0.6,
        logit_bias=((1, -0.3),), min_tokens=1, ending_token_ids=(2,)),
    "every filter": Sampling(temperature=1.7, top_k=3, top_p=0.97, min_p=0.05, typical_p=0.9),
}


def seeded(base: Sampling, rule: AcceptanceRule, seed: int) -> Sampling:
    """``base`` under another rule and seed."""
    return replace(base, rule=rule, seed=seed)


@pytest.mark.parametrize(
    ("filters", "draft_lengths"),
    [("plain", [0]), ("plain", [1]), ("plain", [2]), ("plain", [4]), ("plain", [3, 0, 1]), ("cold", [3]),
     ("top_k", [2]), ("top_p", [3]), ("min_p", [2]), ("typical_p", [2]), ("every filter", [3]),
     ("repetition_penalty", [2]), ("presence_penalty", [2]), ("frequency_penalty", [3]), ("logit_bias", [2]),
     ("min_tokens", [3]), ("everything", [3, 0, 2])],
)
def test_texts_under_rejection_follow_the_law(filters: str, draft_lengths: list[int]) -> None:
    base = FILTERS[filters]
    texts = write_many(PAIR, lambda n: seeded(base, AcceptanceRule.REJECTION, n), draft_lengths, LENGTH, TEXTS)
    assert p_value(texts, law(PAIR, base, LENGTH)) > REJECTED_BELOW


@pytest.mark.parametrize("filters", FILTERS)
def test_texts_under_coupling_follow_the_law(filters: str) -> None:
    base = FILTERS[filters]
    texts = write_many(PAIR, lambda n: seeded(base, AcceptanceRule.COUPLED, n), [0], LENGTH, TEXTS)
    assert p_value(texts, law(PAIR, base, LENGTH)) > REJECTED_BELOW


def test_choices_of_one_seed_follow_the_law() -> None:
    texts = write_many(PAIR, lambda n: Sampling(temperature=1.0, seed=6, choice=n), [2], LENGTH, TEXTS)
    assert p_value(texts, law(PAIR, Sampling(temperature=1.0), LENGTH)) > REJECTED_BELOW


def test_a_sampled_draft_may_be_stated_as_certain() -> None:
    """Given the token, it is: text stays exact and drafts stand less often (so this is no bug to be planted)."""

    def draft(logits: Tensor, how: Sampling, position: int) -> tuple[int, Tensor]:
        token, probs = draft_token(logits, how, position)
        return token, torch.nn.functional.one_hot(torch.tensor([token]), probs.shape[-1]).to(probs)

    rule = AcceptanceRule.REJECTION
    texts = write_many(PAIR, lambda n: seeded(FILTERS["plain"], rule, n), [2], LENGTH, TEXTS, Round(draft=draft))
    assert p_value(texts, law(PAIR, FILTERS["plain"], LENGTH)) > REJECTED_BELOW


def test_the_test_notices_another_model() -> None:
    other = random_pair(3, seed=4, apart=1.5)
    other.target[0, 0] += 1.0
    texts = write_many(other, lambda n: seeded(FILTERS["plain"], AcceptanceRule.REJECTION, n), [2], LENGTH, TEXTS)
    assert p_value(texts, law(PAIR, FILTERS["plain"], LENGTH)) < REJECTED_BELOW


@pytest.mark.parametrize("filters", [*FILTERS, "greedy"])
def test_coupled_text_depends_neither_on_draft_lengths_nor_on_the_drafter(filters: str) -> None:
    base = FILTERS.get(filters, Sampling())
    garbage = MarkovPair(PAIR.target, torch.randn(3, 3, generator=torch.Generator().manual_seed(9)) * 5)

    def variants(seed: int) -> set[Text]:
        sampling = seeded(base, AcceptanceRule.COUPLED, seed)
        return {
            write(pair, sampling, draft_lengths, 12)
            for pair in (PAIR, garbage)
            for draft_lengths in ([0], [1], [2], [4], [8], [3, 0, 1])
        }

    every = [variants(seed) for seed in range(12)]
    assert all(len(texts) == 1 for texts in every)
    if filters != "greedy":
        assert len(set.union(*every)) > 5


def test_coupled_drafts_use_the_verifiers_noise_and_rejected_ones_do_not() -> None:
    sampling = Sampling(temperature=1.0, seed=2)
    logits = torch.zeros(1, 1000)
    own = draw(torch.full((1000,), 0.001), NoiseKey(2), 7, Purpose.COUPLED)
    assert draft_token(logits, sampling, 7)[0] == own
    assert draft_token(logits, seeded(sampling, AcceptanceRule.REJECTION, 2), 7)[0] != own
