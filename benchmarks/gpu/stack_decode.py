"""The whole stack on a GPU as a user starts it: coordinator and both workers as processes, gRPC, MPS where it is there.

Several texts at once, greedy; rates count from a text's first token. Of a round: *RPC* is what draft and verify calls
take beyond what the workers report, *scheduling* what a round takes beyond its calls. Turns between the two processes
hide in what the workers report: compare ``verify_s`` and ``draft_s`` with the same cell in one process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

from benchmarks.gpu.in_process import PROMPTS
from benchmarks.gpu.section_file import SectionFile
from benchmarks.samples import Sample
from benchmarks.stack_run import Configuration, running_stack, stack_text, stack_tokens
from qspec.config import StackConfig
from qspec.interfaces import Progress

BATCHES = (1, 8, 32)
LENGTHS: tuple[int | None, ...] = (0, 4, None)
_TOKENS = 160


def measure_stack(
    file: SectionFile, *, model: str, draft: str, verify: str, tell: Progress, device: str = "cuda",
    batches: tuple[int, ...] = BATCHES, tokens: int = _TOKENS, positions: int = 1024,
) -> None:
    """Measure what ``file`` lacks."""
    config = StackConfig(
        model=model, device=device, draft_quantization=draft, verify_quantization=verify, max_slots=max(batches),
        kv_tokens=max(batches) * positions, max_model_len=positions)
    names = [_name(batch, length) for batch in batches for length in LENGTHS]
    if file.missing(names):
        asyncio.run(_measure(file, config, batches, tokens, tell))


def _name(batch: int, length: int | None) -> str:
    return f"batch {batch} k {'auto' if length is None else length}"


async def _measure(
    file: SectionFile, config: StackConfig, batches: tuple[int, ...], tokens: int, tell: Progress
) -> None:
    lines = PROMPTS.read_text("utf-8").splitlines()
    async with running_stack(config, lambda text: tell(text, None)) as client:
        prompts = [await stack_tokens(client, json.loads(line)["turns"][0], 400) for line in lines[: max(batches)]]
        for batch in batches:
            for length in LENGTHS:
                name = _name(batch, length)
                if name in file.record:
                    continue
                how = Configuration(name=name, draft_length=length)
                asked = [prompts[index % len(prompts)] for index in range(batch)]
                await asyncio.gather(*(stack_text(client, how, prompt, 24) for prompt in asked))  # graphs
                started = time.perf_counter()
                samples = await asyncio.gather(*(stack_text(client, how, prompt, tokens) for prompt in asked))
                file.put(name, _figures(samples, time.perf_counter() - started))
                tell(f"{name}: {file.record[name]}", None)


def _figures(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Rates, and shares of a round; medians over the texts."""
    shares: dict[str, list[float]] = {name: [] for name in ("rpc", "scheduling", "draft", "verify")}
    for sample in samples:
        of = sample.speculation
        assert of is not None, "our own servers tell"
        shares["rpc"].append(of.rpc_s / of.round_s)
        shares["scheduling"].append((of.round_s - of.draft_s - of.verify_s) / of.round_s)
        shares["draft"].append(of.draft_s / of.round_s)
        shares["verify"].append(of.verify_s / of.round_s)
    longest = max(sample.decode_s for sample in samples)
    speculations = [sample.speculation for sample in samples if sample.speculation is not None]
    drafted, accepted = (sum(getattr(each, name) for each in speculations) for name in ("drafted", "accepted"))
    return {
        "decode_tokens_per_s": sum(sample.decode_tokens for sample in samples) / longest,
        "tokens_per_s_with_prompts": sum(len(sample.token_ids) for sample in samples) / seconds,
        "acceptance": accepted / drafted if drafted else None,
        "round_s": statistics.median(each.round_s / each.rounds for each in speculations),
        "verify_s": statistics.median(each.verify_s / each.rounds for each in speculations),
        "draft_s": statistics.median(each.draft_s / each.rounds for each in speculations),
        "shares": {name: statistics.median(values) for name, values in shares.items()},
    }
