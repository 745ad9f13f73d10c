"""transformers ``generate`` in fp16 on the same weights, greedy, and its assisted generation at batch 1.

The assistant is the model before it was widened: the same function, so that every draft that rounding lets stand does,
with few bytes to read. Nothing that QSPEC ships could do better as an assistant.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.section_file import SectionFile
from benchmarks.widened_model import WidenedWeights
from benchmarks.widened_transformers import transformers_model
from qspec.interfaces import Progress
from qspec.models.converted import prepare
from qspec.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPTS = Path(__file__).parent.parent / "prompts.jsonl"
_TOKENS = 96
BATCHES = (1, 8)


def measure_transformers(
    file: SectionFile, *, model: str, factor: int, tell: Progress, tokens: int = _TOKENS, repeats: int = 2
) -> None:
    """Measure what ``file`` lacks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    original = prepare(model, progress=tell)

    def loaded(times: int) -> PreTrainedModel:
        with WidenedWeights(original, times, device=device) as widened:
            made = transformers_model(widened.config, widened.tensors, dtype=torch.float16, device=device)
        assert made.generation_config is not None
        made.generation_config.eos_token_id = None  # texts end by their length: assistants take no least length
        return made

    target = loaded(factor)
    tokenizer = Tokenizer.load(original.tokenizer_directory)
    lines = _PROMPTS.read_text("utf-8").splitlines()
    prompts = [tokenizer.encode_chat([{"role": "user", "content": json.loads(line)["turns"][0]}])
               for line in lines[: max(BATCHES)]]

    def say(text: str) -> None:
        tell(text, None)

    for batch in BATCHES:
        found = file.measure(f"batch {batch}", partial(_rate, target, prompts[:batch], tokens, repeats, {}), say)
        tell(f"transformers, batch {batch}: {found}", None)
    if factor > 1:
        assistant = loaded(1)
        found = file.measure(
            "assisted, batch 1", partial(_rate, target, prompts[:1], tokens, repeats, {"assistant_model": assistant}),
            say)
        tell(f"transformers with an assistant: {found}", None)


def _rate(
    model: PreTrainedModel, prompts: list[list[int]], tokens: int, repeats: int, changes: dict[str, Any]
) -> dict[str, Any]:
    """Tokens per second of all texts together after the first ones, from two lengths: the prompt's time cancels."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1

    def seconds(count: int) -> float:
        started = time.perf_counter()
        generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
        generated = generate(
            inputs=ids, attention_mask=mask, do_sample=False, max_new_tokens=count,
            pad_token_id=0, **changes)
        assert generated.shape[1] == longest + count
        _synchronise()
        return time.perf_counter() - started

    few = max(tokens // 8, 2)
    seconds(few)
    rates = [len(prompts) * (tokens - few) / (seconds(tokens) - seconds(few)) for _ in range(repeats)]
    return {"tokens_per_s": max(rates), "all": rates, "tokens": tokens}


def _synchronise() -> None:
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
