"""transformers ``generate`` in fp16 on the same weights, greedy, and its assisted generation at batch 1.

The assistant is the model before it was widened: the same function, so that every draft that rounding lets stand does,
with few bytes to read. Nothing that QSPEC ships could do better as an assistant.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import progress_of
from benchmarks.gpu.in_process import benchmark_prompts
from benchmarks.gpu.results_file import Section
from benchmarks.widened_model import WidenedWeights
from benchmarks.widened_transformers import transformers_model
from qspec.models.converted import prepare
from qspec.models.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTORS = (7, 12)
BATCHES = (1, 8)
_TOKENS = 64


def measure_transformers(
    section: Section, run: BenchRun, factor: int, *, tokens: int = _TOKENS, repeats: int = 2
) -> None:
    """Measure what ``section`` lacks."""
    plain = {f"batch {batch}": batch for batch in BATCHES}
    assisted = "assisted, batch 1"
    if not section.wants([*plain, assisted]):
        return
    original = prepare(run.model, progress=progress_of(section))

    def loaded(times: int) -> PreTrainedModel:
        with WidenedWeights(original, times, device=run.device) as widened:
            made = transformers_model(widened.config, widened.tensors, dtype=torch.float16, device=run.device)
        assert made.generation_config is not None
        made.generation_config.eos_token_id = None  # texts end by their length: assistants take no least length
        return made

    started = time.perf_counter()
    target = loaded(factor)
    section.note("load_s", time.perf_counter() - started)
    tokenizer = Tokenizer.load(original.tokenizer_directory)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": prompt}])
               for prompt in benchmark_prompts()[: max(BATCHES)]]

    def measure(name: str, batch: int, changes: Callable[[], dict[str, Any]] = dict) -> None:
        found = section.measure(name, lambda: _rate(target, prompts[:batch], tokens, repeats, changes()))
        section.tell(f"transformers, {name}: {found}")

    for name, batch in plain.items():
        measure(name, batch)
    measure(assisted, 1, lambda: {"assistant_model": loaded(1)})


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
    for count in (few, tokens):  # the first text of a length takes up to three times as long
        seconds(count)
    rates = [len(prompts) * (tokens - few) / (seconds(tokens) - seconds(few)) for _ in range(repeats)]
    return {"tokens_per_s": statistics.median(rates), "all": rates, "tokens": tokens}


def _synchronise() -> None:
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
