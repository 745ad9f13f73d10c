"""Bias, penalties and bans against their definition, one token and one row at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.interfaces import Sampling
from qspec.logit_adjustment import DraftHistory, adjust

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 9
numbers = st.integers(-8, 8).map(lambda n: n / 4)
samplings = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]), presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.5]), min_tokens=st.integers(0, 5),
    logit_bias=st.dictionaries(st.integers(0, 8), numbers, max_size=3).map(lambda those: tuple(sorted(those.items()))),
    ending_token_ids=st.sets(st.integers(0, 8), max_size=3).map(lambda ids: tuple(sorted(ids))),
)


def defined(logits: list[float], sampling: Sampling, history: list[int], prompt_len: int) -> list[float]:
    """The definition."""
    generated = history[prompt_len:]
    result = []
    for token, logit in enumerate(logits):
        value = logit + dict(sampling.logit_bias).get(token, 0.0)
        if token in history:
            value = value * sampling.repetition_penalty if value < 0 else value / sampling.repetition_penalty
        value -= sampling.frequency_penalty * generated.count(token)
        value -= sampling.presence_penalty * (token in generated)
        banned = token in sampling.ending_token_ids and len(generated) < sampling.min_tokens
        result.append(-math.inf if banned else value)
    return result


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    sampling=samplings, prompt=st.lists(st.integers(0, 8), min_size=1, max_size=5),
    text=st.lists(st.integers(0, 8), max_size=6), drafts=st.lists(st.integers(0, 8), max_size=4), data=st.data(),
)
def test_every_row_has_the_history_of_its_position(
    sampling: Sampling, prompt: list[int], text: list[int], drafts: list[int], data: st.DataObject
) -> None:
    rows = len(drafts) + 1
    logits = data.draw(st.lists(st.lists(numbers, min_size=9, max_size=9), min_size=rows, max_size=rows))
    given_logits = torch.tensor(logits, dtype=torch.float64)
    committed = [*prompt, *text]
    found = adjust(given_logits, sampling, torch.tensor([*committed, *drafts]), len(prompt))
    expected = [
        defined(row, sampling, [*committed, *drafts[:index]], len(prompt)) for index, row in enumerate(logits)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    assert given_logits.tolist() == logits, "the model's logits stay as they are"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sampling=samplings, seed=st.integers(0, 1000))
def test_a_row_has_the_same_bits_alone_and_from_the_drafters_side(sampling: Sampling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    committed = torch.randint(0, VOCAB_SIZE, (12,), generator=generator)
    drafts = torch.randint(0, VOCAB_SIZE, (5,), generator=generator).tolist()
    logits = torch.randn(6, VOCAB_SIZE, generator=generator) * 5
    together = adjust(logits, sampling, torch.cat([committed, torch.tensor(drafts)]), 4)
    history = DraftHistory(committed, 4)
    for row in range(6):
        alone = adjust(logits[row : row + 1], sampling, torch.cat([committed, torch.tensor(drafts[:row]).long()]), 4)
        assert torch.equal(alone[0], together[row])
        assert torch.equal(history.adjust(logits[row : row + 1], sampling, drafts[:row])[0], together[row])


def test_nothing_is_copied_where_nothing_is_asked_for() -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    for sampling in (Sampling(temperature=0.7, top_k=3), Sampling(min_tokens=4), Sampling(ending_token_ids=(1,))):
        assert adjust(logits, sampling, torch.tensor([1, 2]), 1) is logits
        assert not sampling.adjusts_logits


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0.5), Sampling(repetition_penalty=1.1), Sampling(presence_penalty=0.1),
    Sampling(frequency_penalty=-0.1), Sampling(logit_bias=((1, 1.0),)), Sampling(min_tokens=1, ending_token_ids=(2,)),
])
def test_only_plain_greedy_needs_no_logits(sampling: Sampling) -> None:
    assert not sampling.plain_greedy
    assert Sampling(top_k=3, top_p=0.5, seed=9).plain_greedy
