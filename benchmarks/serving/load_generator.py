"""An open-loop load generator: requests go out when they are due, however far the server has come with others.

It shares the machine with what it measures, so that it does as little as possible while requests run: requests are
serialised beforehand, messages are kept as bytes with the time of their arrival, and read when the block is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from benchmarks.serving.stream_record import StreamRecord
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import generation_pb2 as pb

StreamTimes = tuple[float, float, list[tuple[float, bytes]]]
"""When a request was due, when it was sent, and its messages with the times at which they came."""
_METHOD = "/qspec.v1.GenerationService/Generate"


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request and when it is due, in seconds after the first."""

    due_s: float
    request: pb.GenerateRequest
    behind: int = 0
    """Streams that must have begun first; ``due_s`` counts from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedLoad:
    """What came of a block of requests."""

    streams: tuple[StreamRecord, ...]
    """In the order of the requests."""
    cpu_s: float
    """What the generator's own process took meanwhile."""

    @property
    def tokens(self) -> int:
        """Tokens of all streams."""
        return sum(stream.tokens for stream in self.streams)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return max(stream.last_s for stream in self.streams)

    @property
    def latest_s(self) -> float:
        """How long after its time the latest request was sent."""
        return max(stream.sent_s - stream.due_s for stream in self.streams)


async def generate_load(channel: grpc.aio.Channel, requests: Sequence[TimedRequest]) -> GeneratedLoad:
    """Send every request when it is due and read all streams to their ends.

    Raises the ``QspecError`` of the first request that fails; none is meant to.
    """
    open_call: Any = channel.unary_stream  # the stubs do not know that both serialisers may be left out
    call = open_call(_METHOD)  # bytes both ways
    prepared = [(timed, timed.request.SerializeToString()) for timed in requests]
    begun, one_more = 0, asyncio.Condition()
    cpu_s, started = time.process_time(), time.perf_counter()

    async def run(timed: TimedRequest, request: bytes) -> StreamTimes:
        nonlocal begun
        due_s = timed.due_s
        if timed.behind:
            async with one_more:
                await one_more.wait_for(lambda: begun >= timed.behind)
            due_s += time.perf_counter() - started
        await asyncio.sleep(due_s - (time.perf_counter() - started))
        sent_s = time.perf_counter() - started
        messages: list[tuple[float, bytes]] = []
        try:
            async for message in call(request):
                messages.append((time.perf_counter() - started, message))
                if len(messages) == 1:
                    begun += 1
                    async with one_more:
                        one_more.notify_all()
        except grpc.RpcError as error:
            raise from_rpc_error(error, "the server") from error
        return due_s, sent_s, messages

    tasks = [asyncio.ensure_future(run(timed, request)) for timed, request in prepared]
    try:
        ended = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    cpu_s = time.process_time() - cpu_s
    return GeneratedLoad(
        streams=tuple(StreamRecord.of(due_s, sent_s, messages) for due_s, sent_s, messages in ended), cpu_s=cpu_s)
