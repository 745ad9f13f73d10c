"""So many streams at once, with drafts and without: what ``auto`` is worth at each batch size, and what a round costs
the coordinator.

A block is a number of requests that come at once and ask for the same number of tokens, ends of sequence ignored, with
as many slots as there are requests. Every configuration serves the same block before any serves the next one, by turns.
What counts is the time in which all of them decode and end: from the last one's first token to the last token of all,
so that prompts are not in it. Nothing of them is cached, the stack has no prefix cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from benchmarks.serving.block_log import BlockKey, BlockLog
from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.serving.progress import tokens_between
from benchmarks.serving.scheduling import round_shares
from benchmarks.stack_run import AUTO, PLAIN, Configuration, Tell
from benchmarks.statistics import Interval, Spread, median_interval, spread
from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb

CONFIGURATIONS = (AUTO, Configuration(name="k = 0", draft_length=PLAIN.draft_length))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize:
    """So many streams at once."""

    streams: int
    blocks: int
    rates: dict[str, Spread]
    """Tokens per second by configuration."""
    ratio: Interval
    """``auto`` over no drafts, block by block."""
    tokens_per_round: float
    """Of a stream, with ``auto``."""
    accepted_share: float | None
    """Of the drafted tokens; None where nothing was drafted."""
    scheduling: Interval
    """Share of a round of ``auto`` that is the coordinator's own, between the workers' answers and the next calls."""
    rpc: float
    """Share that is in the calls, but not the workers'."""
    round_s: float
    """Seconds of a round of ``auto``."""
    differing_texts: int


def decode_rate(load: GeneratedLoad) -> float:
    """Tokens per second after every stream's first. ``QspecError`` where none came."""
    begun = max(stream.first_s for stream in load.streams)
    tokens = sum(tokens_between(stream, begun, load.seconds) for stream in load.streams)
    if not tokens:
        raise QspecError("--batch-tokens: every text was over before the last one began; ask for more")
    return tokens / (load.seconds - begun)


def keys_in_order(sizes: Sequence[int], blocks: int) -> Iterator[tuple[BlockKey, Configuration]]:
    """All blocks: every size has its first before any has its second; the configurations by turns."""
    turn = 0
    for index in range(blocks):
        for size in sizes:
            order = CONFIGURATIONS if turn % 2 == 0 else CONFIGURATIONS[::-1]
            turn += 1
            for configuration in order:
                yield BlockKey(float(size), index, configuration.name), configuration


async def measure_batch_sizes(
    channel: grpc.aio.Channel, prompts: Sequence[tuple[int, ...]], log: BlockLog, *, sizes: Sequence[int], blocks: int,
    max_tokens: int, deadline: float, tell: Tell, clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure what ``log`` lacks until ``deadline`` (of ``clock``); False when that came before the end."""
    warm: set[tuple[float, str]] = set()
    for key, configuration in keys_in_order(sizes, blocks):
        if key in log.blocks:
            continue
        if clock() > deadline:
            return False
        requests = [
            TimedRequest(0.0, pb.GenerateRequest(
                tokens=pb.TokenPrompt(token_ids=prompts[index % len(prompts)]), max_tokens=max_tokens, temperature=0.0,
                ignore_eos=True, draft_length=configuration.draft_length))
            for index in range(round(key.load))
        ]
        if (key.load, key.configuration) not in warm:  # graphs are captured, and acceptance is learnt, for the first
            await generate_load(channel, requests)
            warm.add((key.load, key.configuration))
        load = await generate_load(channel, requests)
        log.add(key, load)
        tell(f"{key.load:g} at once, block {key.index + 1} of {blocks}: {key.configuration}: "
             f"{decode_rate(load):.1f} tokens/s")
    return True


def batch_size_figures(log: BlockLog, sizes: Sequence[int]) -> tuple[BatchSize, ...]:
    """What the blocks of a log say, where both configurations have served the same."""
    figures = []
    for size in sizes:
        found = {(key.index, key.configuration): block for key, block in log.blocks.items() if key.load == size}
        names = [configuration.name for configuration in CONFIGURATIONS]
        begun = sorted({index for index, _ in found})
        whole = [index for index in begun if all((index, name) in found for name in names)]
        if whole:
            figures.append(_figures(size, {name: [found[index, name] for index in whole] for name in names}))
    return tuple(figures)


def _figures(size: int, blocks: dict[str, list[GeneratedLoad]]) -> BatchSize:
    rates = {name: [decode_rate(block) for block in found] for name, found in blocks.items()}
    auto, plain = (configuration.name for configuration in CONFIGURATIONS)
    shares = [round_shares(block) for block in blocks[auto]]
    streams = [stream for block in blocks[auto] for stream in block.streams]
    drafted = sum(stream.drafted for stream in streams)
    differing = sum(
        one.digest != other.digest
        for ours, theirs in zip(blocks[auto], blocks[plain], strict=True)
        for one, other in zip(ours.streams, theirs.streams, strict=True))
    return BatchSize(
        streams=size, blocks=len(shares), rates={name: spread(found) for name, found in rates.items()},
        ratio=median_interval([ours / theirs for ours, theirs in zip(rates[auto], rates[plain], strict=True)]),
        tokens_per_round=sum(stream.tokens for stream in streams) / sum(stream.rounds for stream in streams),
        accepted_share=sum(stream.accepted for stream in streams) / drafted if drafted else None,
        scheduling=median_interval([one.scheduling for one in shares]),
        rpc=statistics.median(one.rpc for one in shares), round_s=statistics.median(one.round_s for one in shares),
        differing_texts=differing)
