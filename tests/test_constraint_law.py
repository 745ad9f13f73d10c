"""A masked target over an unmasked draft: the text's law is the masked target's, and the test notices planted bugs.

The toy grammar looks at the whole text: no token three times in a row, and never 2 right behind 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec.acceptance import Decision, decide
from qspec.interfaces import AcceptanceRule, Sampling
from qspec.logit_adjustment import adjust
from qspec.target_mask import mask_target
from tests.markov_text import MarkovPair, Round, law, p_value, random_pair, write, write_many

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = random_pair(3, seed=4, apart=1.5)
LENGTH = 4
TEXTS = 1000
REJECTED_BELOW = 1e-3
NOTICED_BELOW = 1e-6
SAMPLINGS = {
    "plain": Sampling(temperature=1.5),
    "top_k": Sampling(temperature=1.0, top_k=2),
    "penalties": Sampling(temperature=1.0, repetition_penalty=1.5, frequency_penalty=0.5, logit_bias=((1, 0.8),)),
    "banned": Sampling(temperature=1.0, min_tokens=2, ending_token_ids=(0, 1)),
}


def allowed_behind(text: Sequence[int]) -> list[bool]:
    """What the toy grammar allows."""
    thrice = text[-1] if len(text) > 1 and text[-1] == text[-2] else None
    return [token != thrice and not (token == 2 and text[-1] == 1) for token in range(3)]


def masked(logits: Tensor, sampling: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
    """The target as the verifier makes it: adjusted, then masked with the history of each row."""
    histories = [tokens[: len(tokens) - len(logits) + 1 + row].tolist() for row in range(len(logits))]
    rows = torch.tensor([allowed_behind(history) for history in histories])
    return mask_target(adjust(logits, sampling, tokens, prompt_len), logits, rows)


CONSTRAINED = Round(adjust_target=masked)


@pytest.mark.parametrize(("how", "draft_lengths"), [
    ("plain", [0]), ("plain", [1]), ("plain", [2]), ("plain", [4]), ("plain", [3, 0, 1]), ("top_k", [2]),
    ("penalties", [3]), ("banned", [2]),
])
def test_texts_under_rejection_follow_the_masked_law(how: str, draft_lengths: list[int]) -> None:
    base = replace(SAMPLINGS[how], rule=AcceptanceRule.REJECTION)
    texts = write_many(PAIR, lambda n: replace(base, seed=n), draft_lengths, LENGTH, TEXTS, CONSTRAINED)
    assert p_value(texts, law(PAIR, base, LENGTH, masked)) > REJECTED_BELOW


@pytest.mark.parametrize("how", SAMPLINGS)
def test_coupled_texts_follow_it_and_do_not_depend_on_drafts(how: str) -> None:
    base = replace(SAMPLINGS[how], rule=AcceptanceRule.COUPLED)
    texts = write_many(PAIR, lambda n: replace(base, seed=n), [0], LENGTH, TEXTS, CONSTRAINED)
    assert p_value(texts, law(PAIR, base, LENGTH, masked)) > REJECTED_BELOW
    garbage = MarkovPair(PAIR.target, torch.randn(3, 3, generator=torch.Generator().manual_seed(9)) * 5)
    for seed, draft_lengths in ((seed, lengths) for seed in range(20) for lengths in ([1], [2], [4], [3, 0, 1])):
        for pair in (PAIR, garbage):
            assert write(pair, replace(base, seed=seed), draft_lengths, LENGTH, CONSTRAINED) == texts[seed]


@pytest.mark.parametrize("draft_lengths", [[1], [2], [4]])
def test_greedy_texts_do_not_depend_on_drafts(draft_lengths: list[int]) -> None:
    plain = write(PAIR, Sampling(), [0], 12, CONSTRAINED)
    assert write(PAIR, Sampling(), draft_lengths, 12, CONSTRAINED) == plain
    assert plain != write(PAIR, Sampling(), [0], 12), "the grammar forbids nothing of it"


def mask_on_the_draft_only() -> Round:
    """The drafter keeps to the grammar, the verifier does not."""
    return Round(adjust_draft=masked)


def mask_on_the_recovered_token_only() -> Round:
    """Drafts are accepted by the free target; the token behind them is drawn from the masked one."""

    def decided(
        drafts: Sequence[int], probs: Tensor | None, logits: Tensor, how: Sampling, position: int
    ) -> Decision:
        free = decide(drafts, probs, unmasked[-1], how, position)
        last = decide((), None, logits[free.accepted : free.accepted + 1], how, position + free.accepted)
        return Decision(free.accepted, last.next_token)

    unmasked: list[Tensor] = []

    def target(logits: Tensor, sampling: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
        unmasked.append(adjust(logits, sampling, tokens, prompt_len))
        return masked(logits, sampling, tokens, prompt_len)

    return Round(decide=decided, adjust_target=target)


def mask_behind_the_committed_text_only() -> Round:
    """Every row is masked as the first one: the drafts before it are left out of the history."""

    def target(logits: Tensor, sampling: Sampling, tokens: Tensor, prompt_len: int) -> Tensor:
        history = tokens[: len(tokens) - len(logits) + 1].tolist()
        rows = torch.tensor([allowed_behind(history)]).expand(len(logits), -1)
        return mask_target(adjust(logits, sampling, tokens, prompt_len), logits, rows)

    return Round(adjust_target=target)


@pytest.mark.parametrize("bug", [
    mask_on_the_draft_only, mask_on_the_recovered_token_only, mask_behind_the_committed_text_only,
])
def test_planted_bugs_are_noticed(bug: Callable[[], Round]) -> None:
    base = replace(SAMPLINGS["plain"], rule=AcceptanceRule.REJECTION)
    texts = write_many(PAIR, lambda n: replace(base, seed=n), [2], LENGTH, TEXTS, bug())
    assert p_value(texts, law(PAIR, base, LENGTH, masked)) < NOTICED_BELOW


def test_a_ban_gives_way_where_it_leaves_nothing() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    banned = torch.tensor([[float("-inf"), 2.0, 3.0], [float("-inf"), 2.0, 3.0]])
    rows = mask_target(banned, logits, torch.tensor([[True, False, False], [True, True, False]]))
    assert rows.tolist() == [[1.0, float("-inf"), float("-inf")], [float("-inf"), 2.0, float("-inf")]]
