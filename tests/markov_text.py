"""Speculative decoding of a Markov model, small enough that the law of its text can be written down.

A model's logits depend on the last token alone: the target's and the drafter's are two tables. Penalties and bans make
the next token depend on all that came before. ``write`` is the
workers' round in miniature, with the real functions, positions and purposes (``qspec.engine``), and can be given others
to plant a bug. ``law`` enumerates the probability of every text, ``p_value`` compares it with texts that were written.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from qspec.acceptance import Decision, decide, draft_token
from qspec.interfaces import Sampling
from qspec.logit_adjustment import adjust
from qspec.sampling import token_probs

Text = tuple[int, ...]
FIRST_TOKEN = 0
"""The prompt."""
PROMPT_LEN = 1


@dataclass(frozen=True, slots=True)
class MarkovPair:
    """Two models: ``target`` and ``draft`` are logits ``[vocab, vocab]`` by the last token."""

    target: Tensor
    draft: Tensor

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.target.shape[0]


@dataclass(frozen=True, slots=True)
class Round:
    """The functions that a round is made of."""

    draft: Callable[[Tensor, Sampling, int], tuple[int, Tensor]] = draft_token
    decide: Callable[[Sequence[int], Tensor | None, Tensor, Sampling, int], Decision] = decide
    adjust_draft: Callable[[Tensor, Sampling, Tensor, int], Tensor] = adjust
    adjust_target: Callable[[Tensor, Sampling, Tensor, int], Tensor] = adjust


def random_pair(vocab_size: int, seed: int, *, apart: float) -> MarkovPair:
    """Two random models; the larger ``apart``, the less the drafter knows."""
    target, other = torch.randn(2, vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed)).double()
    return MarkovPair(1.2 * target, 1.2 * target + apart * other)


def write(
    pair: MarkovPair, sampling: Sampling, draft_lengths: Sequence[int], length: int, functions: Round = Round()
) -> Text:
    """``length`` tokens; round n drafts ``draft_lengths[n]`` tokens (over and over again)."""
    tokens = [FIRST_TOKEN]
    for draft_length in itertools.cycle(draft_lengths):
        if len(tokens) > length:
            return tuple(tokens[1 : length + 1])
        drafts: list[int] = []
        probs: list[Tensor] = []
        for step in range(draft_length):
            last = drafts[-1] if drafts else tokens[-1]
            own = functions.adjust_draft(
                pair.draft[last : last + 1], sampling, torch.tensor([*tokens, *drafts]), PROMPT_LEN)
            token, distribution = functions.draft(own, sampling, len(tokens) + step)
            drafts.append(token)
            probs.append(distribution)
        logits = functions.adjust_target(
            pair.target[[tokens[-1], *drafts]], sampling, torch.tensor([*tokens, *drafts]), PROMPT_LEN)
        decision = functions.decide(drafts, torch.cat(probs) if probs else None, logits, sampling, len(tokens))
        tokens += [*drafts[: decision.accepted], decision.next_token]
    raise AssertionError("no draft lengths were given")


def write_many(
    pair: MarkovPair, sampling: Callable[[int], Sampling], draft_lengths: Sequence[int], length: int, count: int,
    functions: Round = Round(),
) -> list[Text]:
    """``count`` texts, each with ``sampling`` of its number."""
    return [write(pair, sampling(number), draft_lengths, length, functions) for number in range(count)]


def law(
    pair: MarkovPair, sampling: Sampling, length: int,
    adjust_target: Callable[[Tensor, Sampling, Tensor, int], Tensor] = adjust,
) -> dict[Text, float]:
    """The probability of every text of ``length`` tokens under the target alone."""
    probability: dict[Text, float] = {(): 1.0}
    for _ in range(length):
        probability = {
            (*text, token): chance * float(step)
            for text, chance in probability.items()
            for token, step in enumerate(_next_probs(pair, sampling, text, adjust_target))
        }
    return probability


def _next_probs(
    pair: MarkovPair, sampling: Sampling, text: Text,
    adjust_target: Callable[[Tensor, Sampling, Tensor, int], Tensor],
) -> Tensor:
    history = torch.tensor([FIRST_TOKEN, *text])
    logits = pair.target[history[-1:]]
    return token_probs(adjust_target(logits, sampling, history, PROMPT_LEN), sampling)[0]


def p_value(texts: Iterable[Text], expected: dict[Text, float]) -> float:
    """Chi-square test of ``texts`` against their law; rare texts are counted together, impossible ones give 0."""
    counts = Counter(texts)
    total = sum(counts.values())
    if any(expected[text] == 0.0 for text in counts):
        return 0.0
    rare = [text for text, chance in expected.items() if chance * total < 8]
    cells = [(counts[text], chance * total) for text, chance in expected.items() if chance * total >= 8]
    rest = sum(expected[text] for text in rare) * total
    if rest >= 1:
        cells.append((sum(counts[text] for text in rare), rest))
    observed, predicted = torch.tensor(cells, dtype=torch.float64).unbind(1)
    return float(stats.chisquare(observed.numpy(), (predicted * observed.sum() / predicted.sum()).numpy()).pvalue)
