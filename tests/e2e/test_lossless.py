"""The text is the verifier's, whatever speculation does: SmolLM2 in fp32 through the whole stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qspec.models.converted import prepare_tokenizer
from qspec.models.resolve import resolve
from qspec.models.tokenizer import Tokenizer
from tests.e2e.client import answers, first_prompts

pytestmark = pytest.mark.timeout(420)
PROMPTS = 20
TOKENS = 40
NEAR_TIE = 1e-3
"""Two logits of the reference that are closer than this may swap places by rounding alone."""


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return first_prompts(tmp_path_factory.mktemp("prompts"), PROMPTS)


@pytest.fixture(scope="module")
def plain(prompt_file: Path) -> list[dict[str, Any]]:
    """Greedy texts without speculation."""
    return answers("--prompts-file", str(prompt_file), "--max-tokens", str(TOKENS), "--draft-length", "0")


def tokens(results: list[dict[str, Any]]) -> list[list[int]]:
    return [result["token_ids"] for result in results]


@pytest.mark.parametrize("draft_length", ["auto", "4"])
def test_greedy_text_is_that_of_plain_decoding(
    prompt_file: Path, plain: list[dict[str, Any]], draft_length: str
) -> None:
    drafted = answers(
        "--prompts-file", str(prompt_file), "--max-tokens", str(TOKENS), "--draft-length", draft_length
    )
    assert len(drafted) == PROMPTS
    assert tokens(drafted) == tokens(plain)
    assert [result["text"] for result in drafted] == [result["text"] for result in plain]
    assert all(result["speculation"]["drafted"] == 0 for result in plain)
    if draft_length == "4":
        assert all(result["speculation"]["drafted"] > 0 for result in drafted)
        accepted = sum(result["speculation"]["accepted"] for result in drafted)
        assert accepted > 0.6 * sum(result["speculation"]["drafted"] for result in drafted)


def test_greedy_text_is_that_of_transformers(prompt_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same weights in fp32, whatever ``auto`` takes here, token by token after the same tokens."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    texts = answers(
        "--prompts-file", str(prompt_file), "--max-tokens", str(TOKENS), "--verify-quantization", "none:fp32")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = resolve("smollm2").path
    reference = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    ).eval()
    tokenizer = Tokenizer.load(prepare_tokenizer("smollm2"))
    near_ties = 0
    for result in texts:
        prompt = tokenizer.encode_chat([{"role": "user", "content": result["prompt"]}])
        assert result["usage"]["prompt_tokens"] == len(prompt) and result["token_ids"]
        near_ties += count_near_ties(reference, prompt, result["token_ids"])
    with capsys.disabled():
        print(f" [{len(texts)} texts equal to transformers', {near_ties} near ties]", end="")


def count_near_ties(reference: Any, prompt: list[int], ours: list[int]) -> int:
    """Every token that is not the reference's first choice must be a near tie; returns their number."""
    with torch.inference_mode():
        logits = reference(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1].float()
    swapped = [index for index, token in enumerate(ours) if int(logits[index].argmax()) != token]
    for index in swapped:
        assert float(logits[index].max() - logits[index, ours[index]]) < NEAR_TIE
    return len(swapped)


def test_seeded_text_does_not_depend_on_draft_length_or_batch(tmp_path: Path) -> None:
    options = ("--max-tokens", "32", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7")
    together = first_prompts(tmp_path, 4)
    texts = {
        draft_length: tokens(answers("--prompts-file", str(together), *options, "--draft-length", draft_length))
        for draft_length in ("0", "1", "4")
    }
    assert texts["0"] == texts["1"] == texts["4"]
    alone = answers("--prompts-file", str(first_prompts(tmp_path, 1)), *options, "--draft-length", "4")
    assert tokens(alone) == texts["0"][:1]
    other = answers("--prompts-file", str(first_prompts(tmp_path, 1)), *options[:-1], "8")
    assert tokens(other) != texts["0"][:1]
