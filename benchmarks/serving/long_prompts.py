"""A long prompt comes while other texts go on: how long do these stand still, and when does it get its first token?

Two stacks side by side serve the same blocks by turns: one with the bound on what prompts may add to a round
(``StackConfig.max_prefill_s``), one in which they take all the rows that there are. A block is some short prompts whose
texts go on until its end, and one long prompt that comes when all of them have begun. Nothing of it is cached.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc

from benchmarks.serving.block_log import BlockKey, BlockLog
from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.serving.stream_record import StreamRecord
from benchmarks.stack_run import Tell
from qspec.errors import QspecError
from qspec.v1 import generation_pb2 as pb

AFTER_S = 1.0
"""Seconds from when all running texts have begun to the long prompt, by default."""
_ITS_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What one block says."""

    before_s: float
    """Longest time that a running text stood still before the long prompt came."""
    during_s: float
    """The same from when it came to its first token."""
    first_token_s: float
    """From when it came to its first token."""

    @classmethod
    def of(cls, load: GeneratedLoad) -> Beside:
        """Of a block, whose last stream is that of the long prompt. ``QspecError`` when the others ended before it."""
        *running, long = load.streams
        if min(stream.last_s for stream in running) < long.first_s:
            raise QspecError("--beside-tokens: texts ended before the long prompt's first token; ask for more")
        begun = max(stream.first_s for stream in running)
        return cls(
            before_s=max(longest_gap(stream, begun, long.sent_s) for stream in running),
            during_s=max(longest_gap(stream, long.sent_s, long.first_s) for stream in running),
            first_token_s=long.first_s - long.sent_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongPrompt:
    """One configuration beside so many running texts: medians over blocks, and the worst gap."""

    streams: int
    configuration: str
    blocks: int
    before_s: float
    during_s: float
    longest_s: float
    """The longest ``during_s`` of all blocks."""
    first_token_s: float


def longest_gap(stream: StreamRecord, after_s: float, until_s: float) -> float:
    """Longest part of the time between two times in which nothing came; 0 if there is no such time."""
    times = [after_s, *(when for when, _ in stream.deliveries if after_s < when < until_s), until_s]
    return max(max(later - earlier for earlier, later in itertools.pairwise(times)), 0.0)


def keys_in_order(streams: Sequence[int], names: Sequence[str], blocks: int) -> Iterator[BlockKey]:
    """All blocks; the configurations by turns."""
    turn = 0
    for index in range(blocks):
        for count in streams:
            shift = turn % len(names)
            turn += 1
            for name in (*names[shift:], *names[:shift]):
                yield BlockKey(float(count), index, name)


async def measure_long_prompts(
    channels: Mapping[str, grpc.aio.Channel], prompts: Sequence[tuple[int, ...]], long_prompt: tuple[int, ...],
    log: BlockLog, *, streams: Sequence[int], blocks: int, max_tokens: int, deadline: float, tell: Tell,
    clock: Callable[[], float] = time.monotonic, after_s: float = AFTER_S,
) -> bool:
    """Measure what ``log`` lacks until ``deadline`` (of ``clock``); False when that came before the end.

    ``channels``: to the stacks, by configuration. ``after_s``: the long prompt comes so long after all others have
    begun.
    """
    for key in keys_in_order(streams, list(channels), blocks):
        if key in log.blocks:
            continue
        if clock() > deadline:
            return False
        count = round(key.load)
        load = await generate_load(channels[key.configuration], [
            *(TimedRequest(0.0, _request(prompts[index % len(prompts)], max_tokens, key)) for index in range(count)),
            TimedRequest(after_s, _request(long_prompt, _ITS_TOKENS, key), behind=count)])
        found = Beside.of(load)
        log.add(key, load)
        tell(f"{count} running, {key.configuration}: longest gap {1000 * found.during_s:.0f} ms, the prompt's first "
             f"token after {found.first_token_s:.2f} s")
    return True


def long_prompt_figures(log: BlockLog, streams: Sequence[int], names: Sequence[str]) -> tuple[LongPrompt, ...]:
    """What the blocks of a log say, where there are any."""
    figures = []
    for count in streams:
        for name in names:
            found = [Beside.of(block) for key, block in log.blocks.items()
                     if (round(key.load), key.configuration) == (count, name)]
            if found:
                figures.append(LongPrompt(
                    streams=count, configuration=name, blocks=len(found),
                    before_s=statistics.median(one.before_s for one in found),
                    during_s=statistics.median(one.during_s for one in found),
                    longest_s=max(one.during_s for one in found),
                    first_token_s=statistics.median(one.first_token_s for one in found)))
    return tuple(figures)


def _request(prompt: tuple[int, ...], max_tokens: int, key: BlockKey) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        tokens=pb.TokenPrompt(token_ids=prompt), max_tokens=max_tokens, temperature=0.0, ignore_eos=True,
        cache_salt=f"block {key.index} of {key.load:g}")
