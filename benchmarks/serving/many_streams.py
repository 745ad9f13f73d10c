"""Many streams at once: do all end, is memory bounded, does none starve?

All requests come at once, and ask for the same number of tokens, ends of sequence ignored. A second wave does the same
again: memory that grew once is a working set, memory that grows again is a leak.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from benchmarks.memory import descendants, read_memory
from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.serving.progress import Evenness, evenness
from benchmarks.serving.scheduling import RoundShares, round_shares
from benchmarks.simulation import Latency
from benchmarks.stack_run import Tell
from qspec.v1 import generation_pb2 as pb

_SAMPLE_EVERY_S = 1.0
_WARM_UP_TOKENS = 8
_FEWER = (1, 16)
"""Numbers of streams before the waves, for what rounds have besides their calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGrowth:
    """Memory of one process in bytes: before the first wave, at its highest, and after each wave."""

    program: str
    proportional_before: int
    proportional_peak: int
    proportional_after: tuple[int, ...]
    resident_before: int
    resident_peak: int
    resident_after: tuple[int, ...]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ProcessGrowth:
        """From ``dataclasses.asdict`` after its way through JSON."""
        return cls(**{
            **record, "proportional_after": tuple(record["proportional_after"]),
            "resident_after": tuple(record["resident_after"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """What came of one wave of streams; ``GeneratedLoad`` has every stream at its end."""

    finished: int
    """Streams that came to their end with all the tokens that they asked for."""
    tokens: int
    seconds: float
    throughput: float
    """Tokens per second, prompts included in the time."""
    first_token: Latency
    gap: Latency
    evenness: Evenness

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Wave:
        """From ``dataclasses.asdict`` after its way through JSON."""
        return cls(**{
            **record, "first_token": Latency(**record["first_token"]), "gap": Latency(**record["gap"]),
            "evenness": Evenness(**record["evenness"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyStreams:
    """Every wave, and what it did to memory."""

    streams: int
    slots: int
    """Of them, so many can run at once."""
    tokens_each: int
    waves: tuple[Wave, ...]
    memory: tuple[ProcessGrowth, ...]
    shares: tuple[tuple[int, RoundShares], ...]
    """What rounds have besides their calls, with so many streams at once; the last is that of the waves."""


    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ManyStreams:
        """From ``dataclasses.asdict`` after its way through JSON."""
        return cls(**{
            **record,
            "waves": tuple(Wave.from_json(wave) for wave in record["waves"]),
            "memory": tuple(ProcessGrowth.from_json(one) for one in record["memory"]),
            "shares": tuple((streams, RoundShares(**shares)) for streams, shares in record["shares"]),
        })


async def measure_many_streams(
    channel: grpc.aio.Channel, prompts: Sequence[tuple[int, ...]], *, streams: int, slots: int, max_tokens: int,
    waves: int, tell: Tell,
) -> ManyStreams:
    """Run ``waves`` waves over ``channel``, whose stack must be a child of this process and the only one."""
    requests = [
        TimedRequest(0.0, pb.GenerateRequest(
            tokens=pb.TokenPrompt(token_ids=prompts[index % len(prompts)]), max_tokens=max_tokens, temperature=0.0,
            ignore_eos=True))
        for index in range(streams)
    ]
    warm_up = pb.GenerateRequest(
        tokens=pb.TokenPrompt(token_ids=prompts[0]), max_tokens=_WARM_UP_TOKENS, ignore_eos=True)
    await generate_load(channel, [TimedRequest(0.0, warm_up)])
    watch = _MemoryWatch()
    shares = []
    for count in _FEWER:
        if count < streams:
            shares.append((count, round_shares(await generate_load(channel, requests[:count]))))
    found = []
    for index in range(waves):
        watching = asyncio.ensure_future(watch.sample())
        try:
            load = await generate_load(channel, requests)
        finally:
            watching.cancel()
        found.append(_wave(load, max_tokens))
        if index == 0:
            shares.append((streams, round_shares(load)))
        watch.mark()
        tell(f"wave {index + 1} of {waves}: {streams} streams, {found[-1].throughput:.1f} tokens/s")
    return ManyStreams(
        streams=streams, slots=slots, tokens_each=max_tokens, waves=tuple(found), memory=watch.growth(),
        shares=tuple(shares))


def _wave(load: GeneratedLoad, max_tokens: int) -> Wave:
    return Wave(
        finished=sum(stream.tokens == max_tokens for stream in load.streams), tokens=load.tokens, seconds=load.seconds,
        throughput=load.tokens / load.seconds,
        first_token=Latency.of([stream.first_token_s for stream in load.streams]),
        gap=Latency.of([gap for stream in load.streams for gap in stream.gaps_s] or [0.0]),
        evenness=evenness(load.streams))


class _MemoryWatch:
    """Memory of the processes below this one: now, at its peak, and whenever it is marked."""

    def __init__(self) -> None:
        self._first = [read_memory(pid) for pid in descendants(os.getpid())]
        self._peaks = {one.pid: (one.proportional, one.resident) for one in self._first}
        self._marks: dict[int, list[tuple[int, int]]] = {one.pid: [] for one in self._first}

    async def sample(self) -> None:
        """Look every second until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(_SAMPLE_EVERY_S)

    def mark(self) -> None:
        """Note what it is now."""
        for pid, now in self._look().items():
            self._marks[pid].append(now)

    def growth(self) -> tuple[ProcessGrowth, ...]:
        """What was found."""
        return tuple(
            ProcessGrowth(
                program=one.program, proportional_before=one.proportional, resident_before=one.resident,
                proportional_peak=self._peaks[one.pid][0], resident_peak=self._peaks[one.pid][1],
                proportional_after=tuple(mark[0] for mark in self._marks[one.pid]),
                resident_after=tuple(mark[1] for mark in self._marks[one.pid]))
            for one in self._first
        )

    def _look(self) -> dict[int, tuple[int, int]]:
        now = {one.pid: (one.proportional, one.resident) for one in map(read_memory, self._peaks)}
        for pid, found in now.items():
            self._peaks[pid] = max(self._peaks[pid][0], found[0]), max(self._peaks[pid][1], found[1])
        return now
