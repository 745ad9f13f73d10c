"""Filters against their definition, and draws against the distribution that they are drawn from."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from qspec.filters import keep_typical_p
from qspec.interfaces import Sampling
from qspec.noise import NoiseKey, Purpose, gumbel
from qspec.sampling import draw, token_probs
from qspec.sampling_options import MAX_TEMPERATURE, MIN_TEMPERATURE

pytestmark = pytest.mark.usefixtures("one_thread")

BOUNDARY = 1e-9
"""Sums that come this close to ``top_p`` may fall on either side of it."""


def until(order: list[int], probs: list[float], mass: float) -> set[int]:
    """The first tokens of an order until their sum reaches ``mass``."""
    before = [math.fsum(probs[token] for token in order[:rank]) for rank in range(len(order))]
    assume(all(abs(sum_ - mass) > BOUNDARY for sum_ in before))
    return {token for token, sum_ in zip(order, before, strict=True) if sum_ < mass}


def kept(probs: list[float], tokens: set[int]) -> list[float]:
    """Without the other tokens."""
    total = math.fsum(probs[token] for token in tokens)
    return [prob / total if token in tokens else 0.0 for token, prob in enumerate(probs)]


def by_typicality(probs: list[float]) -> list[int]:
    """Possible tokens, those first whose surprise is nearest to the entropy; of equally probable ones the lowest id."""
    possible = [token for token, prob in enumerate(probs) if prob > 0]
    entropy = -math.fsum(probs[token] * math.log(probs[token]) for token in possible)
    distance = {token: round(abs(-math.log(probs[token]) - entropy), 10) for token in possible}
    levels: dict[float, float] = {}
    for token in possible:  # two probabilities equally far from the entropy, up to rounding, may go either way
        assume(abs(levels.setdefault(distance[token], probs[token]) - probs[token]) < 1e-12)
    ranked = sorted(levels)
    assume(all(after - before > BOUNDARY for before, after in itertools.pairwise(ranked)))
    return sorted(possible, key=lambda token: (distance[token], token))


def filtered(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float = 0.0, typical_p: float = 1.0
) -> list[float]:
    """The definition, one token after the other: temperature, top-k with its ties, top-p with ties by token id, …"""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    if 0 < top_k < len(logits):
        kth = sorted(logits, reverse=True)[top_k - 1]
        weights = [weight if logit >= kth else 0.0 for weight, logit in zip(weights, logits, strict=True)]
    total = math.fsum(weights)
    probs = [weight / total for weight in weights]
    if top_p < 1.0:
        probs = kept(probs, until(sorted(range(len(probs)), key=lambda token: (-probs[token], token)), probs, top_p))
    if min_p > 0.0:
        most = max(probs)
        assume(all(prob == most or abs(prob - min_p * most) > BOUNDARY for prob in probs))
        probs = kept(probs, {token for token, prob in enumerate(probs) if prob >= min_p * most})
    if typical_p < 1.0:
        probs = kept(probs, until(by_typicality(probs), probs, typical_p))
    return probs


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=1, max_size=9),  # with many ties
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.integers(0, 11),  # beyond the vocabulary too
    top_p=st.sampled_from([1e-6, 0.2, 0.5, 0.77, 0.95, 0.9999, 1.0]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.1, 0.4, 1.0]),
    typical_p=st.sampled_from([1e-6, 0.2, 0.6, 0.93, 1.0, 1.0]),
)
def test_filters_follow_their_definition(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float
) -> None:
    expected = filtered(logits, temperature, top_k, top_p, min_p, typical_p)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p)
    probs = token_probs(torch.tensor([logits], dtype=torch.float64), sampling)[0]
    torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert token_probs(logits, Sampling()).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_top_k_keeps_ties_and_top_p_breaks_them_by_token_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    assert (token_probs(logits, Sampling(temperature=1.0, top_k=1)) > 0).tolist() == [[False, True, True, True]]
    left = token_probs(logits, Sampling(temperature=1.0, top_p=0.5)) > 0
    assert left.tolist() == [[False, True, True, False]]


def test_the_smallest_top_p_keeps_one_token() -> None:
    probs = token_probs(torch.zeros(1, 5), Sampling(temperature=1.0, top_p=1e-30))
    assert probs.tolist() == [[1, 0, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [MIN_TEMPERATURE, MAX_TEMPERATURE])
def test_an_excluded_token_is_impossible_at_every_temperature(temperature: float) -> None:
    logits = torch.tensor([[-math.inf, 1e4, 30.0, -30.0], [-1e4, -math.inf, -math.inf, -math.inf]])
    for filters in ({}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9}, {"top_k": 3}):
        probs = token_probs(logits, Sampling(temperature=temperature, **filters))  # type: ignore[arg-type]
        assert not probs[logits.isneginf()].any()
        torch.testing.assert_close(probs.sum(-1), torch.ones(2))


def test_min_p_keeps_its_bound_and_typical_p_breaks_ties_by_token_id() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.125, 0.125]], dtype=torch.float64)
    assert (token_probs(probs.log(), Sampling(temperature=1.0, min_p=0.25)) > 0).all()
    assert (token_probs(probs.log(), Sampling(temperature=1.0, min_p=1.0)) > 0).tolist() == [[True] + [False] * 3]
    # Entropy 1.75 bits: the surprises 1, 2, 3, 3 lie 0.75, 0.25, 1.25, 1.25 away.
    for typical_p, expected in ((0.1, [1]), (0.26, [0, 1]), (0.76, [0, 1, 2]), (0.9, [0, 1, 2, 3])):
        found = token_probs(probs.log(), Sampling(temperature=1.0, typical_p=typical_p))[0]
        assert found.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("vocab_size", [7, 320, 5003])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8), Sampling(temperature=0.8, top_k=5), Sampling(temperature=0.9, top_p=0.97),
        Sampling(temperature=1.1, top_k=300, top_p=0.9), Sampling(temperature=0.9, min_p=0.05),
        Sampling(temperature=0.9, typical_p=0.9), Sampling(temperature=1.2, top_k=200, min_p=0.01, typical_p=0.8),
    ],
)
def test_a_row_does_not_depend_on_the_rows_beside_it(vocab_size: int, sampling: Sampling) -> None:
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(1))
    logits *= torch.tensor([9.0, 0.01, 3.0, 9.0, 1.0, 0.0, 20.0, 2.0, 4.0])[:, None]  # peaked and flat
    together = token_probs(logits, sampling)
    for rows in range(1, 10):
        assert torch.equal(token_probs(logits[:rows], sampling), together[:rows])
        assert torch.equal(token_probs(logits[9 - rows :], sampling), together[9 - rows :])


def draws(weights: Tensor, count: int) -> Tensor:
    """How often each token is drawn, over ``count`` positions."""
    tokens = [draw(weights, NoiseKey(11), position, Purpose.DRAFT) for position in range(count)]
    return torch.bincount(torch.tensor(tokens), minlength=len(weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_follows_the_weights(dtype: torch.dtype) -> None:
    weights = torch.tensor([4.0, 0.0, 1.0, 2.5, 0.0, 0.5], dtype=dtype)  # not normalised
    counts = draws(weights, 3000)
    possible = weights > 0
    assert int(counts[~possible].sum()) == 0
    expected = (3000 * weights / weights.sum())[possible].double()
    assert stats.chisquare(counts[possible].numpy(), (expected * 3000 / expected.sum()).numpy()).pvalue > 1e-3
    wrong = torch.tensor([0.55, 0.1, 0.28, 0.07], dtype=torch.float64) * 3000
    assert stats.chisquare(counts[possible].numpy(), wrong.numpy()).pvalue < 1e-3, "the test could not fail"


def test_a_few_possible_tokens_of_many_are_drawn_alike() -> None:
    some = torch.tensor([4.0, 1.0, 2.5, 0.5])
    at = torch.tensor([3, 700, 701, 4999])
    weights = torch.zeros(5000).index_put((at,), some)
    counts = draws(weights, 3000)
    assert int(counts.sum() - counts[at].sum()) == 0
    assert stats.chisquare(counts[at].numpy(), (3000 * some / some.sum()).double().numpy()).pvalue > 1e-3
    for position in range(50):
        noise = torch.from_numpy(gumbel(NoiseKey(11), position, Purpose.DRAFT, 5000))
        assert draw(weights, NoiseKey(11), position, Purpose.DRAFT) == int((weights.double().log() + noise).argmax())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    vocab_size=st.integers(60, 1500), spread=st.sampled_from([0.0, 0.02, 1.0, 6.0]),
    top_p=st.sampled_from([0.1, 0.9, 0.999]), seed=st.integers(0, 10**6),
)
def test_top_p_and_typical_p_over_large_vocabularies(vocab_size: int, spread: float, top_p: float, seed: int) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)).mul(spread * 4).round() / 4
    whole = keep_typical_p(logits[None].double().softmax(-1), top_p)
    assert torch.equal(keep_typical_p(logits[None].double().softmax(-1).repeat(3, 1), top_p)[1:2], whole)
    order = by_typicality(logits.double().softmax(-1).tolist())
    typical = kept(logits.double().softmax(-1).tolist(), until(order, logits.double().softmax(-1).tolist(), top_p))
    torch.testing.assert_close(whole[0], torch.tensor(typical, dtype=torch.float64), rtol=1e-11, atol=0)
    expected = filtered(logits.tolist(), 1.0, 0, top_p)
    probs = token_probs(logits[None].double(), Sampling(temperature=1.0, top_p=top_p))[0]
    torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0)


def test_one_possible_token_is_drawn_whatever_the_noise() -> None:
    assert draws(torch.tensor([0.0, 0.0, 1e-30, 0.0]), 50).tolist() == [0, 0, 50, 0]


def test_many_threads_add_up_one_row_as_they_add_up_many() -> None:
    logits = torch.randn(3, 70_000, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=1.0, min_p=0.001, typical_p=0.9)
    alone = token_probs(logits[:1], sampling)
    torch.set_num_threads(2)
    assert torch.equal(token_probs(logits[:1], sampling), alone)
    assert torch.equal(token_probs(logits, sampling)[:1], alone)
