"""From options to figures: each section of the benchmark with its stacks, its blocks and its report."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import grpc

from benchmarks.report import Verdict
from benchmarks.serving.batch_sizes import batch_size_figures, measure_batch_sizes
from benchmarks.serving.batch_sizes_report import batch_size_verdicts, render_batch_sizes
from benchmarks.serving.block_log import BlockLog, ResultLog
from benchmarks.serving.feeding import measure_feeding
from benchmarks.serving.feeding_report import feeding_verdicts, render_feeding
from benchmarks.serving.load_section import measure_load_section
from benchmarks.serving.long_prompts import long_prompt_figures, measure_long_prompts
from benchmarks.serving.long_prompts_report import (
    UNBOUNDED,
    bounded_name,
    long_prompt_verdicts,
    render_long_prompts,
)
from benchmarks.serving.many_streams import ManyStreams, measure_many_streams
from benchmarks.serving.options import LEAST_BATCH_BLOCKS, stack_for
from benchmarks.serving.section import USED_UP, Section, log_path, model_name, open_stack, stack_settings
from benchmarks.serving.streams_report import render_streams, stream_verdicts
from benchmarks.stack_run import Tell, stack_tokens

Measure = Callable[[argparse.Namespace, Sequence[str], float, Tell], Awaitable[Section]]
"""Takes the options, the prompts, when to begin no further block (by the monotonic clock), and a listener."""


async def load(args: argparse.Namespace, texts: Sequence[str], deadline: float, tell: Tell) -> Section:
    """Poisson arrivals at shares of the saturation."""
    config = stack_for(args, slots=args.slots, tokens=args.prompt_tokens + args.max_tokens)
    async with open_stack(config, tell) as (client, channel):
        return await measure_load_section(client, channel, args, texts, deadline=deadline, tell=tell)


async def streams(args: argparse.Namespace, texts: Sequence[str], deadline: float, tell: Tell) -> Section:
    """Many streams at once, over each of the numbers of slots."""
    settings = {
        "model": model_name(args.model), "draft_quantization": args.draft_quantization, "device": args.device,
        "verify_quantization": args.verify_quantization, "threads": args.threads, "prompts": args.prompts.name,
        "num_prompts": len(texts), "streams": args.streams, "prompt_tokens": args.stream_prompt_tokens,
        "max_tokens": args.stream_tokens, "waves": args.waves}
    log = ResultLog(log_path(args, "streams"), settings)
    for slots in args.stream_slots:
        if str(slots) not in log.results and time.monotonic() < deadline:
            config = stack_for(args, slots=slots, tokens=args.stream_prompt_tokens + args.stream_tokens)
            async with open_stack(config, tell) as (client, channel):
                cut = [await stack_tokens(client, text, args.stream_prompt_tokens) for text in texts]
                log.add(str(slots), asdict(await measure_many_streams(
                    channel, cut, streams=args.streams, slots=slots, max_tokens=args.stream_tokens, waves=args.waves,
                    tell=tell)))
    records = [log.results[str(slots)] for slots in args.stream_slots if str(slots) in log.results]
    if len(records) < len(args.stream_slots):
        tell(USED_UP)
    found = [ManyStreams.from_json(record) for record in records]
    verdicts: list[Verdict] = [verdict for one in found for verdict in stream_verdicts(one)]
    return Section(
        figures={"settings": settings, "complete": len(records) == len(args.stream_slots), "found": records},
        verdicts=verdicts, text="\n".join(map(render_streams, found)))


async def batches(args: argparse.Namespace, texts: Sequence[str], deadline: float, tell: Tell) -> Section:
    """Batch sizes with drafts and without."""
    tokens = args.batch_prompt_tokens + args.batch_tokens
    config = replace(stack_for(args, slots=max(args.batch_sizes), tokens=tokens), prefix_cache=False)
    async with open_stack(config, tell) as (client, channel):
        prompts = [await stack_tokens(client, text, args.batch_prompt_tokens) for text in texts]
        settings: dict[str, Any] = {
            **stack_settings(args, await client.server_info()), "num_prompts": len(prompts),
            "prompt_tokens": args.batch_prompt_tokens, "max_tokens": args.batch_tokens, "sampling": "greedy"}
        log = BlockLog(log_path(args, "batches"), settings)
        complete = await measure_batch_sizes(
            channel, prompts, log, sizes=args.batch_sizes, blocks=args.batch_blocks, max_tokens=args.batch_tokens,
            deadline=deadline, tell=tell)
    if not complete:
        tell(USED_UP)
    found = batch_size_figures(log, args.batch_sizes)
    return Section(
        figures={"settings": settings, "complete": complete, "sizes": [asdict(one) for one in found]},
        verdicts=batch_size_verdicts(found, args.batch_sizes, min(LEAST_BATCH_BLOCKS, args.batch_blocks)),
        differing=sum(one.differing_texts for one in found), text=render_batch_sizes(found))


async def prompts(args: argparse.Namespace, texts: Sequence[str], deadline: float, tell: Tell) -> Section:
    """A long prompt beside texts that go on, with and without the bound on what it may add to a round."""
    config = stack_for(
        args, slots=max(args.beside) + 1, tokens=args.long_prompt_tokens + args.beside_tokens)
    bounds = {bounded_name(config.max_prefill_s): config.max_prefill_s, UNBOUNDED: float("inf")}
    channels: dict[str, grpc.aio.Channel] = {}
    async with contextlib.AsyncExitStack() as stacks:
        for name, bound in bounds.items():
            client, channels[name] = await stacks.enter_async_context(
                open_stack(replace(config, max_prefill_s=bound), tell))
        short = [await stack_tokens(client, text, args.beside_prompt_tokens) for text in texts]
        long = await stack_tokens(client, "\n".join(texts), args.long_prompt_tokens)
        settings: dict[str, Any] = {
            **stack_settings(args, await client.server_info()), "bounds": list(bounds),
            "prompt_tokens": len(long), "beside_prompt_tokens": args.beside_prompt_tokens,
            "beside_tokens": args.beside_tokens, "sampling": "greedy"}
        log = BlockLog(log_path(args, "prompts"), settings)
        complete = await measure_long_prompts(
            channels, short, long, log, streams=args.beside, blocks=args.prompt_blocks, max_tokens=args.beside_tokens,
            deadline=deadline, tell=tell)
    if not complete:
        tell(USED_UP)
    found = long_prompt_figures(log, args.beside, list(bounds))
    return Section(
        figures={"settings": settings, "complete": complete, "found": [asdict(one) for one in found]},
        verdicts=long_prompt_verdicts(found, config.max_prefill_s), text=render_long_prompts(found, len(long)))


async def feeding(args: argparse.Namespace, texts: Sequence[str], deadline: float, tell: Tell) -> Section:
    """What streaming costs the coordinator."""
    if time.monotonic() > deadline:
        tell(USED_UP)
        return Section(figures=None, verdicts=[], text="what streaming costs: not measured")
    found = await measure_feeding(args, tell)
    return Section(figures=asdict(found), verdicts=feeding_verdicts(found), text=render_feeding(found))


MEASURES: dict[str, Measure] = {
    "load": load, "streams": streams, "batches": batches, "prompts": prompts, "feeding": feeding}
"""In the order in which they are measured."""
