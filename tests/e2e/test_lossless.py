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


def test_greedy_text_is_that_of_transformers(plain: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = resolve("smollm2").path
    reference = AutoModelForCausalLM.from_pretrained(
        str(source.parent), gguf_file=source.name, dtype=torch.float32
    ).eval()
    tokenizer = Tokenizer.load(prepare_tokenizer("smollm2"))
    near_ties = 0
    for result in plain:
        prompt = tokenizer.encode_chat([{"role": "user", "content": result["prompt"]}])
        assert result["usage"]["prompt_tokens"] == len(prompt)
        ours = result["token_ids"]
        with torch.inference_mode():
            made = reference.generate(
                torch.tensor([prompt]), max_new_tokens=len(ours), do_sample=False, eos_token_id=2, pad_token_id=2
            )[0, len(prompt) :].tolist()
            if made != ours:
                near_ties += assert_near_ties(reference, prompt, ours)
    with capsys.disabled():
        print(f" [{len(plain)} texts equal to transformers', {near_ties} near ties]", end="")


def assert_near_ties(reference: Any, prompt: list[int], ours: list[int]) -> int:
    """Every token that is not the reference's first choice must be a near tie; returns their number."""
    logits = reference(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1].float()
    swapped = 0
    for row, token in zip(logits, ours, strict=True):
        best, second = row.topk(2).values.tolist()
        if int(row.argmax()) != token:
            assert best - float(row[token]) < NEAR_TIE and best - second < NEAR_TIE
            swapped += 1
    assert swapped > 0, "the texts differ, but not at a near tie"
    return swapped


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
