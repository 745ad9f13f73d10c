"""Poisson arrivals at several loads, in every configuration: one stack, blocks by turns.

A block is a number of requests, served to the end before the next begins. Every configuration serves the same block
before any serves the next one, and the order moves on by one each time, so that drift of the machine hits all alike.
Every load has had its first block before any has its second: a run that is stopped early has something of everything.

Prompts that were entered in one block are not found again in another, where a later configuration would profit from an
earlier one.

The unit of the loads is measured first: the arrivals per second that the fastest configuration keeps up with when all
requests are there at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from benchmarks.serving.arrivals import poisson_arrivals
from benchmarks.serving.block_log import BURST, BlockKey, BlockLog
from benchmarks.serving.load_generator import TimedRequest, generate_load
from benchmarks.stack_run import Configuration, Tell
from qspec.v1 import generation_pb2 as pb

MOST_REQUESTS = 240
"""In one block: more than may wait would be refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to measure."""

    loads: tuple[float, ...]
    """Shares of the saturation."""
    blocks: int
    """For each load and configuration."""
    block_s: float
    """Seconds over which a block's requests arrive."""
    burst: int
    """Requests of the blocks that measure the saturation."""
    max_tokens: int
    seed: int

    def count(self, load: float, saturation: float) -> int:
        """Requests of a block; ``saturation`` in requests per second."""
        return self.burst if load == BURST else min(max(round(load * saturation * self.block_s), 3), MOST_REQUESTS)


def keys_in_order(plan: LoadPlan, configurations: Sequence[Configuration]) -> Iterator[tuple[BlockKey, Configuration]]:
    """All blocks: those of the saturation, then for each number the loads in turn."""
    turns = [(BURST, 0), *((load, index) for index in range(plan.blocks) for load in plan.loads)]
    for turn, (load, index) in enumerate(turns):
        shift = turn % len(configurations)
        for configuration in (*configurations[shift:], *configurations[:shift]):
            yield BlockKey(load, index, configuration.name), configuration


def saturation_of(log: BlockLog) -> float:
    """Requests per second of the fastest configuration when all come at once; needs those blocks."""
    return max(len(one.streams) / one.seconds for key, one in log.blocks.items() if key.load == BURST)


async def measure_loads(
    channel: grpc.aio.Channel, plan: LoadPlan, configurations: Sequence[Configuration],
    prompts: Sequence[tuple[int, ...]], log: BlockLog, *, deadline: float, tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measure what ``log`` lacks until ``deadline`` (of ``clock``); False when that came before the end."""
    for key, configuration in keys_in_order(plan, configurations):
        if key in log.blocks:
            continue
        if clock() > deadline:
            return False
        saturation = math.inf if key.load == BURST else saturation_of(log)
        rate = math.inf if key.load == BURST else key.load * saturation
        arrivals = poisson_arrivals(
            rate=rate, count=plan.count(key.load, saturation), prompts=len(prompts), seed=plan.seed, block=key.index)
        load = await generate_load(channel, [
            TimedRequest(arrival.at_s, pb.GenerateRequest(
                tokens=pb.TokenPrompt(token_ids=prompts[arrival.prompt]), max_tokens=plan.max_tokens, temperature=0.0,
                draft_length=configuration.draft_length, cache_salt=f"{key.configuration}, {key.load}, {key.index}"))
            for arrival in arrivals
        ])
        log.add(key, load)
        name = "all at once" if key.load == BURST else f"load {key.load:g}, block {key.index + 1} of {plan.blocks}"
        tell(f"{name}: {configuration.name}: {len(load.streams)} requests, {load.tokens / load.seconds:.1f} tokens/s")
    return True
