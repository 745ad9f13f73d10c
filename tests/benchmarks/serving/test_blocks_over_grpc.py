"""Blocks of requests, sent to a server over fake workers."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc

from benchmarks.serving.batch_sizes import batch_size_figures, measure_batch_sizes
from benchmarks.serving.block_log import BlockLog
from benchmarks.serving.long_prompts import long_prompt_figures, measure_long_prompts
from tests.coordinator.test_service import served
from tests.fakes import FakeDrafter, FakeVerifier

LONG = tuple(range(90))


def silent(_what: str) -> None:
    """Nobody listens."""


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def channel_to(directory: Path, verifier: FakeVerifier) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server over these workers."""
    async with (
        served(directory, verifier, FakeDrafter(verifier), max_active=16),
        grpc.aio.insecure_channel(f"unix:{directory}/coordinator.sock") as channel,
    ):
        yield channel


def test_a_long_prompt_comes_when_all_others_have_begun(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01, num_blocks=400, max_batch_rows=32, prefix_cache=True)
        async with channel_to(tmp_path, verifier) as channel:
            log = BlockLog(None, {})
            for deadline, complete in ((-math.inf, False), (math.inf, True)):
                assert complete == await measure_long_prompts(
                    {"here": channel}, [(5, 6, 7), (8, 9)], LONG, log, streams=[2], blocks=2, max_tokens=200,
                    deadline=deadline, tell=silent, after_s=0.05)
            (found,) = long_prompt_figures(log, [2], ["here"])
            assert (found.blocks, found.streams) == (2, 2)
            assert 0.0 < found.before_s < 0.2 and 0.03 <= found.first_token_s < 2.0
            entered = [chunk for batch in verifier.batches for chunk in batch.prefill_chunks if chunk.start >= 30]
            assert len(entered) >= 4, "nothing of it was cached the second time"
    run(test)


def test_batches_of_streams(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.002)
        async with channel_to(tmp_path, verifier) as channel:
            log = BlockLog(None, {})
            assert await measure_batch_sizes(
                channel, [(5, 6, 7), (8, 9)], log, sizes=[1, 3], blocks=2, max_tokens=30, deadline=math.inf,
                tell=silent)
            one, three = batch_size_figures(log, [1, 3])
            assert (one.streams, one.blocks, three.streams, three.blocks) == (1, 2, 3, 2)
            assert one.differing_texts == three.differing_texts == 0
            assert three.rates["auto"].median > 0 and 0 < three.scheduling.median < 1
            drafted = {key.configuration: sum(stream.drafted for stream in block.streams)
                       for key, block in log.blocks.items()}
            assert drafted["auto"] > drafted["k = 0"] == 0
    run(test)
