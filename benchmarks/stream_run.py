"""Many texts at once through the stack under test: what batches make of plain decoding and of drafts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from benchmarks.samples import Sample

REPEATS = 3
Generate = Callable[[str, tuple[int, ...], int], Awaitable[Sample]]
"""(configuration, prompt, most tokens) to one text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRun:
    """One number of streams."""

    streams: int
    rates: dict[str, tuple[float, ...]]
    """Tokens per second of all streams together, prefill included, by configuration: one number for each repeat."""
    differing: dict[str, int]
    """Texts that are not those of the first configuration."""


async def run_streams(
    generate: Generate, configurations: Sequence[str], prompts: Sequence[tuple[int, ...]], streams: int, max_tokens: int
) -> StreamRun:
    """Start ``streams`` texts together, over the prompts in turn, in one configuration after the other, repeatedly.

    The order of configurations moves on by one from repeat to repeat.
    """
    asked = [prompts[index % len(prompts)] for index in range(streams)]
    rates: dict[str, list[float]] = {name: [] for name in configurations}
    texts: dict[str, list[tuple[int, ...]]] = {}
    for repeat in range(REPEATS):
        shift = repeat % len(configurations)
        for name in (*configurations[shift:], *configurations[:shift]):
            started = time.perf_counter()
            samples = await asyncio.gather(*(generate(name, prompt, max_tokens) for prompt in asked))
            seconds = time.perf_counter() - started
            rates[name].append(sum(len(sample.token_ids) for sample in samples) / seconds)
            texts[name] = [sample.token_ids for sample in samples]
    baseline = texts[configurations[0]]
    differing = {
        name: sum(ours != theirs for ours, theirs in zip(found, baseline, strict=True)) for name, found in texts.items()
    }
    return StreamRun(streams=streams, rates={name: tuple(found) for name, found in rates.items()}, differing=differing)
