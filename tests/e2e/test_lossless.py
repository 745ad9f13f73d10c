"""The text is the verifier's, whatever speculation does: SmolLM2 through the whole stack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec.client import AsyncClient, Completion, FinishReason, Message
from qspec.models.converted import prepare_tokenizer
from qspec.models.resolve import resolve
from qspec.models.tokenizer import Tokenizer
from tests.e2e.client import PROMPTS
from tests.e2e.server import serving

pytestmark = pytest.mark.timeout(420)
TEXTS = [json.loads(line)["turns"][0] for line in PROMPTS.read_text("utf-8").splitlines()[:12]]
TOKENS = 32
COMPARED = 6
"""Of the texts, with transformers'."""
NEAR_TIE = 1e-3
"""Two logits of the reference that are closer than this may swap places by rounding alone."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the methods that ``auto`` takes here."""
    with serving(tmp_path_factory.mktemp("auto")) as where:
        yield where


def completions(address: str, wanted: Sequence[tuple[str, dict[str, Any]]]) -> list[Completion]:
    """All of these at once: prompts, and what is asked of their texts."""
    async def complete() -> list[Completion]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(
                client.complete([Message("user", prompt)], **options) for prompt, options in wanted))
    return asyncio.run(complete())


def tokens(found: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in found]


def greedy(address: str, texts: Sequence[str] = TEXTS, **options: Any) -> list[Completion]:
    return completions(address, [(text, {"max_tokens": TOKENS, **options}) for text in texts])


@pytest.fixture(scope="module")
def plain(address: str) -> list[Completion]:
    """Greedy texts without speculation."""
    return greedy(address, draft_length=0)


@pytest.mark.parametrize("draft_length", [None, 4])
def test_greedy_text_is_that_of_plain_decoding(address: str, plain: list[Completion], draft_length: int | None) -> None:
    drafted = greedy(address, **({} if draft_length is None else {"draft_length": draft_length}))
    assert tokens(drafted) == tokens(plain)
    assert [completion.text for completion in drafted] == [completion.text for completion in plain]
    assert all(completion.finish.speculation.drafted == 0 for completion in plain)
    if draft_length is not None:
        assert all(completion.finish.speculation.drafted > 0 for completion in drafted)
        accepted = sum(completion.finish.speculation.accepted for completion in drafted)
        assert accepted > 0.6 * sum(completion.finish.speculation.drafted for completion in drafted)


def test_greedy_text_is_that_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same weights in fp32, whatever ``auto`` takes here, token by token after the same tokens."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    with serving(tmp_path, "--verify-quantization", "none:fp32") as address:
        found = greedy(address, TEXTS[:COMPARED])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = resolve("smollm2").path
    reference = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    ).eval()
    tokenizer = Tokenizer.load(prepare_tokenizer("smollm2"))
    near_ties = 0
    for text, completion in zip(TEXTS, found, strict=False):
        prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
        assert completion.finish.usage.prompt_tokens == len(prompt) and completion.token_ids
        near_ties += count_near_ties(reference, prompt, list(completion.token_ids))
    with capsys.disabled():
        print(f" [{len(found)} texts equal to transformers', {near_ties} near ties]", end="")


def count_near_ties(reference: Any, prompt: list[int], ours: list[int]) -> int:
    """Every token that is not the reference's first choice must be a near tie; returns their number."""
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1].float()
    swapped = [index for index, token in enumerate(ours) if int(logits[index].argmax()) != token]
    for index in swapped:
        assert float(logits[index].max() - logits[index, ours[index]]) < NEAR_TIE
    return len(swapped)


COMMA, PERIOD = 28, 30
SCHEMA = json.dumps({
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["animal", "age"], "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}})
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4}
BIAS = {"logit_bias": {PERIOD: -100.0, COMMA: 2.0}, "min_tokens": 20}
WAYS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.9},
    "top_p": {"temperature": 0.9, "top_p": 0.9},
    "top_k": {"temperature": 0.9, "top_k": 12},
    "min_p": {"temperature": 0.9, "min_p": 0.1},
    "typical_p": {"temperature": 0.9, "typical_p": 0.6},
    "penalties": {"temperature": 0.9, **PENALTIES},
    "bias and min_tokens": {"temperature": 0.9, **BIAS},
    "greedy with penalties and bias": {**PENALTIES, **BIAS},
    "everything": {
        "temperature": 1.1, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.95, **PENALTIES, **BIAS},
    "constraint": {"temperature": 0.9, "json_schema": SCHEMA},
}
"""How tokens may be drawn."""


def drawn(address: str, ways: Sequence[str], draft_length: int, seed: int = 7) -> list[Completion]:
    """Seeded texts behind one prompt, all in one batch."""
    return completions(address, [
        (TEXTS[0], {"max_tokens": 24, "seed": seed, "draft_length": draft_length, **WAYS[way]}) for way in ways])


@pytest.fixture(scope="module")
def seeded(address: str) -> dict[str, Completion]:
    """The texts of every way without speculation."""
    return dict(zip(WAYS, drawn(address, list(WAYS), 0), strict=True))


@pytest.fixture(scope="module")
def drafted(address: str) -> dict[str, Completion]:
    """The same with drafts."""
    return dict(zip(WAYS, drawn(address, list(WAYS), 4), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_seeded_text_does_not_depend_on_draft_length(
    seeded: dict[str, Completion], drafted: dict[str, Completion], way: str
) -> None:
    assert drafted[way].token_ids == seeded[way].token_ids
    assert drafted[way].text == seeded[way].text
    assert drafted[way].finish.speculation.drafted > 0 == seeded[way].finish.speculation.drafted


@pytest.mark.parametrize("way", ["everything", "constraint"])
def test_seeded_text_does_not_depend_on_the_batch(address: str, seeded: dict[str, Completion], way: str) -> None:
    assert tokens(drawn(address, [way], 1)) == [seeded[way].token_ids]
    if way == "everything":
        assert tokens(drawn(address, [way], 1, seed=8)) != [seeded[way].token_ids]


def test_every_way_does_what_it_says(seeded: dict[str, Completion]) -> None:
    usual = seeded["temperature"].token_ids
    same = [way for way in WAYS if seeded[way].token_ids == usual]
    assert len(same) <= 3, f"{same} make no difference"  # one or two may not, by chance
    for way in ("bias and min_tokens", "greedy with penalties and bias", "everything"):
        assert PERIOD not in seeded[way].token_ids and len(seeded[way].token_ids) >= 20
    constrained = seeded["constraint"]
    assert constrained.finish.reason is FinishReason.END_OF_SEQUENCE
    record = json.loads(constrained.text)
    assert record["animal"] in ("cat", "dog") and 0 <= record["age"] <= 30
