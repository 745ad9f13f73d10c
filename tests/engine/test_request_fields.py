"""Whatever a request asks for, a seeded or greedy text is the same with and without drafts, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.interfaces import AcceptanceRule, Sampling, TokenLogprobs
from qspec.sequence import Sequence
from tests.engine.stacks import PROMPTS, SEEDED, Stack, generate, generate_alone, running, sequences

pytestmark = pytest.mark.usefixtures("kernels")

DRAWN = replace(SEEDED, top_k=0, top_p=1.0)
FIELDS = {
    "min_p": replace(DRAWN, min_p=0.02),
    "typical_p": replace(DRAWN, typical_p=0.7),
    "every filter": replace(SEEDED, top_k=100, min_p=0.001, typical_p=0.9),
    "repetition_penalty": replace(DRAWN, repetition_penalty=1.3),
    "presence_penalty": replace(DRAWN, presence_penalty=1.5),
    "frequency_penalty": replace(DRAWN, frequency_penalty=0.7),
    "logit_bias": replace(DRAWN, logit_bias=((3, 5.0), (17, -4.0), (250, 4.5))),
    "min_tokens": replace(DRAWN, min_tokens=12, ending_token_ids=tuple(range(0, 320, 3))),
    "greedy penalties": Sampling(repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.4),
    "greedy bias": Sampling(logit_bias=((9, 2.0), (77, 2.5))),
    "greedy min_tokens": Sampling(min_tokens=12, ending_token_ids=tuple(range(0, 320, 3))),
    "everything": replace(
        SEEDED, min_p=0.001, typical_p=0.95, repetition_penalty=1.1, presence_penalty=0.4, frequency_penalty=0.2,
        logit_bias=((3, 2.0),), min_tokens=5, ending_token_ids=(2, 4, 6)),
}
"""Each differs from ``DRAWN`` by a field or more."""


def wanted(sampling: Sampling, draft_length: int | None = None) -> list[Sequence]:
    """One sequence per prompt."""
    return sequences(sampling, draft_length=draft_length)


@pytest.mark.parametrize("field", FIELDS)
def test_text_does_not_depend_on_drafts_or_batch(model: Path, field: str) -> None:
    sampling = FIELDS[field]
    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(sampling, 0))
        for draft_length in (1, 4, None):
            drafted = wanted(sampling, draft_length)
            assert generate(stack.loop, drafted) == plain
            if draft_length:
                assert sum(sequence.stats.accepted for sequence in drafted) > 0
        base = Sampling() if sampling.greedy else replace(DRAWN, temperature=sampling.temperature)
        assert generate_alone(stack.loop, wanted(base, 0)) != plain, "the field does nothing"


@pytest.mark.parametrize("field", ["greedy penalties", "everything"])
def test_text_does_not_depend_on_recomputation_or_prefill_chunks(model: Path, field: str) -> None:
    with running(model) as stack:
        plain = generate_alone(stack.loop, wanted(FIELDS[field], 0))
    with running(model, kv_tokens=80, max_batch_rows=7) as stack:
        drafted = wanted(FIELDS[field], 3)
        assert generate(stack.loop, drafted) == plain
        assert sum(sequence.stats.recomputations for sequence in drafted) > 0, "text counts as prompt afterwards"


def test_penalties_and_bans_do_what_they_say(model: Path) -> None:
    with running(model) as stack:
        free = generate(stack.loop, sequences(Sampling(), draft_length=3))
        forbidden = {token for text in free for token in text}
        bias = tuple((token, -100.0) for token in sorted(forbidden))
        biased = generate(stack.loop, sequences(Sampling(logit_bias=bias), draft_length=3))
        assert not forbidden & {token for text in biased for token in text}
        fresh = generate(stack.loop, sequences(Sampling(presence_penalty=1000.0), draft_length=3))
        assert all(len(set(text)) == len(text) for text in fresh)
        endings = tuple(sorted(forbidden))
        late = generate(stack.loop, sequences(Sampling(min_tokens=7, ending_token_ids=endings), draft_length=3))
        assert not forbidden & {token for text in late for token in text[:7]}


def test_a_mixed_batch_gets_what_each_asked_for(model: Path) -> None:
    samplings = [Sampling(), *list(FIELDS.values())[-4:]]
    with running(model) as stack:
        alone = [generate_alone(stack.loop, wanted(each, 0))[row] for row, each in enumerate(samplings)]
        mixed = [wanted(each, 3)[row] for row, each in enumerate(samplings)]
        assert generate(stack.loop, mixed) == alone


@pytest.mark.parametrize("field", [name for name, sampling in FIELDS.items() if not sampling.greedy])
def test_drafts_with_the_same_weights_nearly_always_stand(model: Path, field: str) -> None:
    """By rejection drafter and verifier have the same distribution, if both applied the field to the same history."""
    with running(model, draft_quantization="none") as stack:
        rejecting = replace(FIELDS[field], rule=AcceptanceRule.REJECTION)
        drafted = wanted(rejecting, 4)
        generate(stack.loop, drafted)
        drafts, accepted = (sum(getattr(each.stats, name) for each in drafted) for name in ("drafted", "accepted"))
        assert drafts > len(PROMPTS) * 10
        assert accepted > 0.98 * drafts


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logprobs_are_those_of_transformers(family: str, model_of: Callable[[str], Path]) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(model_of(family)).eval()
    sampling = replace(FIELDS["everything"], logprobs=4, prompt_logprobs=3)
    with running(model_of(family)) as stack:
        texts = wanted(sampling, 3)
        told = told_logprobs(stack, texts)
        assert [text.generated for text in texts] == generate(stack.loop, wanted(FIELDS["everything"], 0))
    for text in texts:
        with torch.no_grad():
            logprobs = theirs(torch.tensor([text.tokens])).logits[0].log_softmax(-1)
        both = [*zip(text.prompt_logprobs, [3] * len(text.prompt), strict=False),
                *zip(told[text.request_id], [4] * len(text.tokens), strict=False)]
        assert len(both) == len(text.tokens) - 1
        for position, (found, top) in enumerate(both):
            assert found.logprob == pytest.approx(float(logprobs[position, text.tokens[position + 1]]), abs=1e-3)
            torch.testing.assert_close(
                torch.tensor(found.top_logprobs), logprobs[position].topk(top).values, rtol=0, atol=1e-3)


def told_logprobs(stack: Stack, texts: list[Sequence]) -> dict[str, list[TokenLogprobs]]:
    """Make texts; what was told of their tokens."""
    told: dict[str, list[TokenLogprobs]] = {text.request_id: [] for text in texts}
    for text in texts:
        stack.loop.add(text)
    while stack.loop.has_work:
        for commit in stack.loop.step():
            assert len(commit.logprobs) == len(commit.token_ids)
            told[commit.sequence.request_id] += commit.logprobs
    return told


def test_logprobs_have_the_same_bits_however_they_come_about(model: Path) -> None:
    sampling = Sampling(logprobs=5, prompt_logprobs=2)

    def everything(draft_length: int, **changes: int) -> list[object]:
        with running(model, **changes) as stack:
            texts = wanted(sampling, draft_length)
            told = told_logprobs(stack, texts)
            for text in texts:
                assert len(text.prompt_logprobs) == text.prompt_len - 1
                assert len(told[text.request_id]) == len(text.generated)
            assert not changes.get("kv_tokens") or sum(text.stats.recomputations for text in texts) > 0
            return [(text.tokens, text.prompt_logprobs, told[text.request_id]) for text in texts]

    plain = everything(0)
    assert everything(4) == plain
    assert everything(3, max_batch_rows=7) == plain
    assert everything(2, kv_tokens=96) == plain
