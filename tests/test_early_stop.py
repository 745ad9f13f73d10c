"""A draft that ends early leaves the text's law as it is, unless the token decides that is dropped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec.acceptance import acceptance_probability, decide, draft_token, residual_weights
from qspec.early_stop import DraftGate, chance, logit, sigmoid
from qspec.interfaces import AcceptanceRule, EarlyStop, Sampling
from qspec.sampling import confidence
from tests.markov_text import MarkovPair, Text, law, p_value, random_pair, write_many

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = random_pair(3, seed=4, apart=1.5)
SAMPLING = Sampling(temperature=1.0, rule=AcceptanceRule.REJECTION)
LENGTH = 4
TEXTS = 900
RULE = EarlyStop(least_drawn=0.2, least_fed=0.45, intercept=0.0, slope=1.0)

Drawn = Callable[[Text, Tensor, int], bool]
"""(tokens drafted before, distribution of the next, the token drawn from it) to whether that token is submitted."""


def by_the_gate(before: Text, probs: Tensor, token: int) -> bool:
    """The real rule, replayed; the token is not looked at."""
    del token
    gate = DraftGate(RULE)
    last = 0
    for drafted in before:
        if gate.ended or not gate.admits(float(PAIR.draft[last].softmax(-1).max())):
            return False
        last = drafted
    return not gate.ended and gate.admits(float(probs.max()))


def by_the_token(before: Text, probs: Tensor, token: int) -> bool:
    """The planted bug: a token is dropped for its own improbability."""
    del before
    return float(probs[token]) >= 0.35


def by_submitted_tokens(before: Text, probs: Tensor, token: int) -> bool:
    """Allowed as well: what was drafted before."""
    del probs, token
    return sum(before) < 2


def law_of_round(pair: MarkovPair, length: int, drawn: Drawn) -> dict[Text, float]:
    """Exact law of ``length`` tokens behind token 0 when the first are drafted, ended early by ``drawn``, and decided
    by rejection; what the round does not decide is drawn from the target alone. Every draft is enumerated.
    """
    target, draft = pair.target.softmax(-1), pair.draft.softmax(-1)
    found: dict[Text, float] = {}

    def alone(text: Text, weight: float) -> None:
        if weight == 0.0:
            return
        if len(text) == length:
            found[text] = found.get(text, 0.0) + weight
            return
        row = target[text[-1] if text else 0]
        for token in range(pair.vocab_size):
            alone((*text, token), weight * float(row[token]))

    def drafted(text: Text, weight: float) -> None:
        """All of ``text`` was drafted and accepted with probability ``weight``."""
        if len(text) == length:
            found[text] = found.get(text, 0.0) + weight
            return
        last = text[-1] if text else 0
        accept = acceptance_probability(target[last], draft[last])
        rejected = 0.0
        for token in range(pair.vocab_size):
            probability = weight * float(draft[last, token])
            if not drawn(text, draft[last], token):  # the draft ends here: the bonus token is the target's
                for bonus in range(pair.vocab_size):
                    alone((*text, bonus), probability * float(target[last, bonus]))
                continue
            drafted((*text, token), probability * float(accept[token]))
            rejected += probability * (1.0 - float(accept[token]))
        residual = residual_weights(target[last], draft[last])
        for token in range(pair.vocab_size):
            alone((*text, token), rejected * float(residual[token] / residual.sum()))

    drafted((), 1.0)
    return found


def distance(found: dict[Text, float], expected: dict[Text, float]) -> float:
    """Total variation."""
    return sum(abs(found.get(text, 0.0) - probability) for text, probability in expected.items()) / 2


@pytest.mark.parametrize("drawn", [by_the_gate, by_submitted_tokens])
def test_the_law_is_exactly_the_targets(drawn: Drawn) -> None:
    found = law_of_round(PAIR, 3, drawn)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    assert distance(found, law(PAIR, SAMPLING, 3)) < 1e-12


def test_the_exact_law_notices_a_stop_that_looks_at_its_token() -> None:
    found = law_of_round(PAIR, 3, by_the_token)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)
    assert distance(found, law(PAIR, SAMPLING, 3)) > 0.01


def gate_of_every_length() -> set[int]:
    """How many tokens the rule lets a draft have, over all drafts."""
    lengths = set()
    for text in itertools.product(range(3), repeat=3):
        gate, last, length = DraftGate(RULE), 0, 0
        while length < 3 and not gate.ended and gate.admits(float(PAIR.draft[last].softmax(-1).max())):
            last, length = text[length], length + 1
        lengths.add(length)
    return lengths


def test_the_rule_of_these_tests_ends_drafts_at_several_lengths() -> None:
    assert len(gate_of_every_length()) >= 2


def texts_with(dropped: Callable[[Tensor, int, DraftGate], bool]) -> list[Text]:
    """Texts by the real functions, where a draft of three ends as soon as ``dropped`` says so."""
    def write(seed: int) -> Text:
        sampling = replace(SAMPLING, seed=seed)
        tokens = [0]
        while len(tokens) <= LENGTH:
            drafts: list[int] = []
            probs: list[Tensor] = []
            gate = DraftGate(RULE)
            while len(drafts) < 3 and not gate.ended:
                last = drafts[-1] if drafts else tokens[-1]
                logits = PAIR.draft[last : last + 1]
                token, distribution = draft_token(logits, sampling, len(tokens) + len(drafts))
                if dropped(logits, token, gate):
                    break
                drafts.append(token)
                probs.append(distribution)
            target = PAIR.target[[tokens[-1], *drafts]]
            decision = decide(drafts, torch.cat(probs) if probs else None, target, sampling, len(tokens))
            tokens += [*drafts[: decision.accepted], decision.next_token]
        return tuple(tokens[1 : LENGTH + 1])

    return [write(seed) for seed in range(TEXTS)]


def test_texts_of_many_rounds_follow_the_law() -> None:
    texts = texts_with(lambda logits, token, gate: not gate.admits(confidence(logits, SAMPLING)))
    assert p_value(texts, law(PAIR, SAMPLING, LENGTH)) > 1e-3


def test_a_stop_that_looks_at_its_token_is_noticed() -> None:
    texts = texts_with(lambda logits, token, gate: float(logits.softmax(-1)[0, token]) < 0.35)
    assert p_value(texts, law(PAIR, SAMPLING, LENGTH)) < 1e-6
    whole = write_many(PAIR, lambda n: replace(SAMPLING, seed=n), [3], LENGTH, TEXTS)
    assert p_value(whole, law(PAIR, SAMPLING, LENGTH)) > 1e-3


# ---- the rule -------------------------------------------------------------------------------------------------------


def test_without_a_rule_everything_passes() -> None:
    gate = DraftGate(None)
    assert all(gate.admits(0.0) for _ in range(8))
    assert not gate.ended
    assert gate.confidences == []


def test_the_gate_multiplies_chances() -> None:
    rule = EarlyStop(least_drawn=0.4, least_fed=0.0, intercept=0.0, slope=1.0)
    gate = DraftGate(rule)
    assert [gate.admits(c) for c in (0.9, 0.8, 0.7, 0.7)] == [True, True, True, False]  # 0.9, 0.72, 0.504, 0.353
    assert gate.ended
    assert gate.confidences == [0.9, 0.8, 0.7, 0.7]
    gate = DraftGate(EarlyStop(least_drawn=0.0, least_fed=0.6, intercept=0.0, slope=1.0))
    assert [gate.admits(0.9) and not gate.ended, gate.admits(0.5) and not gate.ended] == [True, False]
    assert len(gate.confidences) == 2, "the second was drawn, and is not fed"


def test_chance_is_the_logistic_of_the_confidence() -> None:
    rule = EarlyStop(least_drawn=0.0, least_fed=0.0, intercept=1.0, slope=0.5)
    assert chance(rule, 0.5) == pytest.approx(sigmoid(1.0))
    assert chance(rule, 0.8) == pytest.approx(sigmoid(1.0 + 0.5 * logit(0.8)))
    for probability in (0.0, 1e-300, 0.3, 1.0):
        assert 0.0 < chance(rule, probability) < 1.0
    assert logit(sigmoid(2.0)) == pytest.approx(2.0)
    assert sigmoid(-1000.0) == 0.0


def test_confidence_is_the_largest_probability_of_what_is_drawn_from() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert confidence(logits, Sampling()) == pytest.approx(float(logits.softmax(-1).max()))
    assert confidence(logits, Sampling(temperature=2.0)) == pytest.approx(float((logits / 2).softmax(-1).max()))
    assert confidence(logits, Sampling(temperature=2.0, top_k=1)) == 1.0
