"""Which blocks are measured, in which order, until when; against a server that only echoes."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.serving.block_log import BURST, BlockKey, BlockLog
from benchmarks.serving.load_curve import LoadPlan, keys_in_order, measure_loads, saturation_of
from benchmarks.serving.load_generator import GeneratedLoad, TimedRequest, generate_load
from benchmarks.stack_run import Configuration
from qspec.errors import QueueFull
from qspec.rpc.interceptor import ErrorInterceptor
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.benchmarks.serving.streams import block, even_stream

CONFIGURATIONS = (
    Configuration(name="auto", draft_length=None), Configuration(name="k = 4", draft_length=4),
    Configuration(name="k = 0", draft_length=0))
PLAN = LoadPlan(loads=(0.5, 1.0), blocks=3, block_s=0.02, burst=4, max_tokens=3, seed=1)


class EchoServer(pb_grpc.GenerationServiceServicer):
    """Answers with the prompt's tokens, one by one, and remembers what it was asked."""

    def __init__(self, delay_s: float = 0.0, refuse: bool = False) -> None:
        self.asked: list[pb.GenerateRequest] = []
        self._delay_s, self._refuse = delay_s, refuse

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self.asked.append(request)
        if self._refuse:
            raise QueueFull("there is no room", 1.0)
        *first, last = request.tokens.token_ids
        for token_id in first:
            yield pb.GenerateResponse(token_ids=[token_id])
            await asyncio.sleep(self._delay_s)
        yield pb.GenerateResponse(
            token_ids=[last], finish_reason=pb.FINISH_REASON_LENGTH, speculation=pb.SpeculationStats(rounds=1))


async def with_server(server: EchoServer, path: Path, work: Any) -> Any:
    """``await work(channel)`` while the server serves."""
    serving = grpc.aio.server(interceptors=[ErrorInterceptor(public=True)])
    pb_grpc.add_GenerationServiceServicer_to_server(server, serving)
    serving.add_insecure_port(f"unix:{path}")
    await serving.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            return await work(channel)
    finally:
        await serving.stop(None)


def test_every_configuration_serves_a_block_before_any_serves_the_next() -> None:
    keys = [key for key, _ in keys_in_order(PLAN, CONFIGURATIONS)]
    turns = [keys[start : start + 3] for start in range(0, len(keys), 3)]
    assert all(len({(key.load, key.index) for key in turn}) == 1 for turn in turns)
    assert [turn[0].load for turn in turns] == [BURST, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0]
    first = Counter(turn[0].configuration for turn in turns[1:])
    assert set(first.values()) == {2}


def test_what_is_logged_is_not_measured_again_and_the_time_is_kept(tmp_path: Path) -> None:
    server, log = EchoServer(), BlockLog(tmp_path / "log", {})
    ticks = itertools.count()

    async def measure(channel: grpc.aio.Channel, deadline: float) -> bool:
        return await measure_loads(
            channel, PLAN, CONFIGURATIONS, [(1, 2), (3, 4, 5)], log, deadline=deadline, tell=lambda text: None,
            clock=lambda: float(next(ticks)))

    assert not asyncio.run(with_server(server, tmp_path / "s", lambda channel: measure(channel, 7.5)))
    assert len(log.blocks) == 8
    asked = len(server.asked)
    log = BlockLog(tmp_path / "log", {})
    assert asyncio.run(with_server(server, tmp_path / "s", lambda channel: measure(channel, 1e9)))
    assert set(log.blocks) == {key for key, _ in keys_in_order(PLAN, CONFIGURATIONS)}
    streams = sum(len(found.streams) for found in log.blocks.values())
    assert len(server.asked) == streams > asked


def test_configurations_ask_for_the_same_texts_with_other_draft_lengths(tmp_path: Path) -> None:
    server = EchoServer()
    plan = LoadPlan(loads=(), blocks=1, block_s=1.0, burst=6, max_tokens=3, seed=1)
    asyncio.run(with_server(server, tmp_path / "s", lambda channel: measure_loads(
        channel, plan, CONFIGURATIONS, [(1, 2), (3, 4), (5, 6)], BlockLog(None, {}), deadline=1e12,
        tell=lambda text: None)))
    by_length: dict[object, list[tuple[int, ...]]] = {}
    for request in server.asked:
        length = request.draft_length if request.HasField("draft_length") else None
        by_length.setdefault(length, []).append(tuple(request.tokens.token_ids))
    assert set(by_length) == {None, 4, 0}
    assert len({tuple(sorted(texts)) for texts in by_length.values()}) == 1


def test_the_loop_is_open(tmp_path: Path) -> None:
    """A request goes out when it is due, although the one before it is far from its end."""
    request = pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=(1, 2, 3)))
    load: GeneratedLoad = asyncio.run(with_server(EchoServer(delay_s=0.3), tmp_path / "s", lambda channel: (
        generate_load(channel, [TimedRequest(0.0, request), TimedRequest(0.1, request)]))))
    slow, other = load.streams
    assert slow.sent_s < 0.1 <= other.sent_s
    assert other.first_s < slow.last_s
    assert slow.end_to_end_s >= 0.6
    assert load.tokens == 6 and load.seconds == other.last_s


def test_a_refused_request_ends_the_run(tmp_path: Path) -> None:
    request = pb.GenerateRequest(tokens=pb.TokenPrompt(token_ids=(1, 2)))
    with pytest.raises(QueueFull, match="no room"):
        asyncio.run(with_server(EchoServer(refuse=True), tmp_path / "s", lambda channel: (
            generate_load(channel, [TimedRequest(0.0, request), TimedRequest(30.0, request)]))))


def test_the_saturation_is_that_of_the_fastest() -> None:
    log = BlockLog(None, {})
    log.add(BlockKey(BURST, 0, "k = 0"), block([even_stream(5), even_stream(5)]))
    log.add(BlockKey(BURST, 0, "auto"), block([even_stream(3), even_stream(3)]))
    log.add(BlockKey(0.5, 0, "auto"), block([even_stream(2)] * 50))
    assert saturation_of(log) == pytest.approx(2 / 2.0)
