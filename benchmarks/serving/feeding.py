"""What streaming costs a coordinator process, and how many streams it can feed.

The workers are simulated (``simulated_worker``). For the cost they answer at once, so that the coordinator is the
bottleneck, and its CPU seconds are counted per token of all streams, RPC to the workers included. For the number of
streams a pass takes a fixed time, and streams double until the 99th percentile of the time between two messages of a
stream, once all have begun, is above a bound. The load generator shares the machine; what it takes is told.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.serving.scheduling import RoundShares, round_shares
from benchmarks.serving.simulated_stack import SimulatedStack, simulated_stack
from benchmarks.simulation import Latency
from benchmarks.stack_run import Tell
from qspec.v1 import generation_pb2 as pb

DRAFT_LENGTHS = (0, 4)
MOST_STREAMS = 1024
_FED_FROM = 16
_FED_S = 3.0
"""Seconds for which streams are fed, if all goes well."""
_PROMPT = (1,) * 16
_MORE = 2**0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingCost:
    """So many streams at once, workers that answer at once."""

    streams: int
    draft_length: int
    tokens: int
    messages: int
    """To the clients, with tokens."""
    seconds: float
    coordinator_cpu_s: float
    cpu_per_token_s: float
    cpu_per_message_s: float
    generator_cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """So many streams at once, workers with a fixed time."""

    streams: int
    gap: Latency
    """Between two messages of a stream once all have begun."""
    throughput: float
    coordinator_cores: float
    """CPU seconds of the coordinator per second."""
    generator_cores: float
    shares: RoundShares


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeding:
    """What the section found."""

    costs: tuple[StreamingCost, ...]
    pass_s: float
    gap_bound_s: float
    fed: tuple[Fed, ...]
    most_streams: int
    """The most of those tried with which, and with all smaller ones tried, the bound held; 0: none."""
    bound_reached: bool
    """Whether more were tried with which it did not."""


async def measure_feeding(args: argparse.Namespace, tell: Tell) -> Feeding:
    """Measure both."""
    costs = []
    async with simulated_stack(args.model, slots=max(args.feeding_streams), pass_s=0.0) as stack:
        await _run(stack, 1, 8, 0)
        for streams in args.feeding_streams:
            for draft_length in DRAFT_LENGTHS:
                costs.append(await _cost(stack, streams, args.feeding_tokens, draft_length))
                tell(f"{streams} streams, k = {draft_length}: {1e6 * costs[-1].cpu_per_token_s:.0f} µs per token")
    bound_s, pass_s = args.gap_ms / 1000, args.pass_ms / 1000
    fed: list[Fed] = []
    async with simulated_stack(args.model, slots=MOST_STREAMS, pass_s=pass_s) as stack:
        await _run(stack, 1, 8, 0)
        streams = _FED_FROM
        while streams <= args.most_fed:
            fed.append(await _feed(stack, streams, max(round(_FED_S / pass_s), 4)))
            tell(f"{streams} streams of passes of {args.pass_ms:g} ms: p99 {1000 * fed[-1].gap.p99:.0f} ms")
            if fed[-1].gap.p99 > bound_s:
                break
            streams = math.ceil(streams * _MORE)
    held = [one.streams for one in fed if one.gap.p99 <= bound_s]
    return Feeding(
        costs=tuple(costs), pass_s=pass_s, gap_bound_s=bound_s, fed=tuple(fed), most_streams=max(held, default=0),
        bound_reached=len(held) < len(fed))


async def _cost(stack: SimulatedStack, streams: int, tokens: int, draft_length: int) -> StreamingCost:
    load, cpu_s = await _run(stack, streams, tokens, draft_length)
    messages = sum(len(stream.deliveries) for stream in load.streams)
    return StreamingCost(
        streams=streams, draft_length=draft_length, tokens=load.tokens, messages=messages, seconds=load.seconds,
        coordinator_cpu_s=cpu_s, cpu_per_token_s=cpu_s / load.tokens, cpu_per_message_s=cpu_s / messages,
        generator_cpu_s=load.cpu_s)


async def _feed(stack: SimulatedStack, streams: int, tokens: int) -> Fed:
    load, cpu_s = await _run(stack, streams, tokens, 0)
    return Fed(
        streams=streams, gap=Latency.of(gaps_together(load)), throughput=load.tokens / load.seconds,
        coordinator_cores=cpu_s / load.seconds, generator_cores=load.cpu_s / load.seconds, shares=round_shares(load))


def gaps_together(load: GeneratedLoad) -> list[float]:
    """Times between two messages of a stream, of those that came after every stream had begun."""
    begun = max(stream.first_s for stream in load.streams)
    return [
        after - before
        for stream in load.streams
        for (before, _), (after, _) in zip(stream.deliveries, stream.deliveries[1:], strict=False)
        if before >= begun
    ] or [math.inf]


async def _run(stack: SimulatedStack, streams: int, tokens: int, draft_length: int) -> tuple[GeneratedLoad, float]:
    """Streams that all come at once, and the coordinator's CPU seconds meanwhile."""
    request = pb.GenerateRequest(
        tokens=pb.TokenPrompt(token_ids=_PROMPT), max_tokens=tokens, temperature=0.0, ignore_eos=True,
        draft_length=draft_length)
    before = stack.cpu_s()
    load = await generate_load(stack.channel, [TimedRequest(0.0, request)] * streams)
    return load, stack.cpu_s() - before
