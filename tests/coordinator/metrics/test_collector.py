"""What a scrape says after requests over fake workers, against what the requests themselves were told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from coordinator.generation import Piece
from coordinator.metrics.catalogue import METRICS, Kind
from coordinator.pair import Pair
from coordinator.serving import ServerState, Serving
from coordinator.stream import Stream
from coordinator.valid_request import ValidRequest
from qspec.errors import QueueFull
from qspec.interfaces import (
    ArenaBackend,
    DraftAnswer,
    DraftBatch,
    MemoryItem,
    Sampling,
    StageTimings,
    VerifyAnswer,
    VerifyBatch,
)
from tests.coordinator.metrics.scraped import scrape
from tests.coordinator.stack_in_memory import OnePair, request, running_engine
from tests.fakes import FakeDrafter, FakeVerifier


class TimedVerifier(FakeVerifier):
    """Tells where its time went."""

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        timings = StageTimings(prepare_ns=1_000, forward_ns=5_000, sample_ns=2_000, total_ns=8_000)
        return replace(super().verify(batch), timings=timings)


class TimedDrafter(FakeDrafter):
    """Tells where its time went."""

    def draft(self, batch: DraftBatch) -> DraftAnswer:
        return replace(super().draft(batch), timings=StageTimings(forward_ns=3_000, total_ns=4_000))


@contextlib.asynccontextmanager
async def serving_engine(
    verifier: FakeVerifier, drafter: FakeDrafter | None, **options: int
) -> AsyncIterator[tuple[Serving, OnePair]]:
    pair = Pair(epochs=1)
    serving = Serving(model="toy", max_waiting=4, pairs=(pair,))
    async with running_engine(verifier, drafter, telemetry=serving.telemetry, **options) as (engine, _):  # type: ignore[arg-type]
        serving.router, pair.engine, pair.verifier = engine, engine.engine, verifier.describe()
        serving.state = ServerState.SERVING
        yield serving, engine


async def collect(engine: OnePair, wanted: ValidRequest) -> list[Piece]:
    async with engine.submit(wanted) as stream:
        return [piece async for piece in stream]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_counts_are_those_that_the_requests_were_told() -> None:
    async def test() -> None:
        verifier = TimedVerifier()
        async with serving_engine(verifier, TimedDrafter(verifier)) as (serving, engine):
            texts = await asyncio.gather(*(
                collect(engine, request(prompt=[1, 2, first], max_tokens=20, draft_length=length))
                for first, length in ((3, 4), (4, 2), (5, 0))))
            await until(lambda: engine.active == 0)
            endings = [text[-1].ending for text in texts]
            stats = [ending.stats for ending in endings if ending is not None]
            now = scrape(serving)
            assert now("qspec_request_success_total", finished_reason="length") == 3
            assert now("qspec_prompt_tokens_total") == 9
            assert now("qspec_generation_tokens_total") == 60
            assert now("qspec_spec_decode_num_draft_tokens_total") == sum(one.drafted for one in stats) > 0
            assert now("qspec_spec_decode_num_accepted_tokens_total") == sum(one.accepted for one in stats) > 0
            for position in range(8):
                stood = sum(
                    one.accepted_per_position[position] for one in stats if position < len(one.accepted_per_position))
                name = "qspec_spec_decode_num_accepted_tokens_per_pos_total"
                assert now(name, position=str(position)) == stood
            undrafted = sum(one.rounds_per_draft_length[0] for one in stats)
            rounds = sum(one.rounds for one in stats)
            assert now("qspec_spec_decode_num_drafts_total") == rounds - undrafted
            assert now("qspec_spec_decode_draft_length_bucket", le="0.0") == undrafted
            assert now("qspec_spec_decode_draft_length_count") == rounds
            assert now("qspec_spec_decode_draft_length_sum") == sum(one.drafted for one in stats)
    run(test)


def test_times_of_requests_rounds_and_workers() -> None:
    async def test() -> None:
        verifier = TimedVerifier(delay_s=0.002)
        async with serving_engine(verifier, TimedDrafter(verifier)) as (serving, engine):
            pieces = await collect(engine, request(max_tokens=20, draft_length=4))
            ending = pieces[-1].ending
            assert ending is not None
            claims = 2
            await until(lambda: engine.active == 0 and bool(verifier.batches[-1].releases) and scrape(serving)(
                "qspec_verify_time_seconds_count") == len(verifier.batches) - claims)
            now = scrape(serving)
            usage = ending.usage
            assert now("qspec_time_to_first_token_seconds_count") == 1
            assert now("qspec_time_to_first_token_seconds_sum") == pytest.approx(usage.time_to_first_token_s)
            assert now("qspec_e2e_request_latency_seconds_sum") == pytest.approx(usage.total_s)
            # The first piece may be of several rounds; the second round begins where the first one's tokens end.
            starts = sorted({one.committed_len for batch in verifier.batches for one in batch.verifications})
            assert now("qspec_inter_token_latency_seconds_count") == 20 - (starts[1] - starts[0])
            assert now("qspec_inter_token_latency_seconds_sum") == pytest.approx(
                usage.total_s - usage.time_to_first_token_s, rel=1e-3)
            assert now("qspec_request_queue_time_seconds_sum") + now(
                "qspec_request_prefill_time_seconds_sum") == pytest.approx(usage.time_to_first_token_s)
            rounds = len([batch for batch in verifier.batches if batch.verifications])
            assert now("qspec_round_time_seconds_count") == now("qspec_verify_time_seconds_count") >= rounds
            verified = int(now("qspec_verify_time_seconds_count"))
            drafted = int(now("qspec_draft_time_seconds_count"))
            assert drafted > 0
            stage = "qspec_worker_stage_seconds_total"
            assert now(stage, worker="verifier", stage="forward") == pytest.approx(verified * 5e-6)
            assert now(stage, worker="verifier", stage="sample") == pytest.approx(verified * 2e-6)
            assert now(stage, worker="drafter", stage="forward") == pytest.approx(drafted * 3e-6)
            assert now("qspec_rpc_time_seconds_sum", worker="verifier") == pytest.approx(
                now("qspec_verify_time_seconds_sum") - verified * 8e-6)
            assert now("qspec_rpc_time_seconds_count", worker="drafter") == drafted
    run(test)


def test_load_refusals_and_failures() -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.005, max_slots=1)
        async with serving_engine(verifier, None, max_active=2, max_buffered_tokens=4) as (serving, engine):
            streams = [engine.submit(request(max_tokens=200)), engine.submit(request(max_tokens=200))]
            await until(lambda: engine.waiting == 1 and 0 < engine.free_blocks < 64)
            with pytest.raises(QueueFull):
                engine.submit(request())
            now = scrape(serving)
            assert (now("qspec_num_requests_running"), now("qspec_num_requests_waiting")) == (1, 1)
            assert (now("qspec_max_requests_running"), now("qspec_max_requests_waiting")) == (1, 4)
            assert 0 < now("qspec_kv_cache_usage_perc") < 1
            assert now("qspec_requests_failed_total", reason="cancelled") == 0
            streams[1].cancel()
            assert isinstance(streams[0], Stream)
            behind = streams[0]
            await until(lambda: behind.complete)  # nobody reads it
            await until(lambda: engine.active == 0)
            await until(lambda: engine.running == 0)
            after = scrape(serving)
            assert after("qspec_requests_failed_total", reason="cancelled") == 1
            assert after("qspec_requests_failed_total", reason="slow_reader") == 1
            assert (after("qspec_num_requests_running"), after("qspec_num_requests_waiting")) == (0, 0)
    run(test)


def test_preemptions_are_counted() -> None:
    async def test() -> None:
        verifier = FakeVerifier(num_blocks=14, max_slots=2, delay_s=0.002)
        async with serving_engine(verifier, None) as (serving, engine):
            texts = await asyncio.gather(*(
                collect(engine, request(prompt=[1, 2, first], max_tokens=40)) for first in (3, 4)))
            recomputed = sum(text[-1].ending.stats.recomputations for text in texts if text[-1].ending is not None)
            assert scrape(serving)("qspec_num_preemptions_total") == recomputed > 0
    run(test)


def test_prompts_that_are_looked_up_and_found() -> None:
    async def test() -> None:
        verifier = FakeVerifier(prefix_cache=True)
        async with serving_engine(verifier, None) as (serving, engine):
            beginning = list(range(1, 13))
            texts = [await collect(engine, request(prompt=[*beginning, last], max_tokens=4)) for last in (20, 21)]
            found = [text[-1].ending.usage.cached_prompt_tokens for text in texts if text[-1].ending is not None]
            now = scrape(serving)
            assert now("qspec_prefix_cache_queries_total") == 26
            assert now("qspec_prefix_cache_hits_total") == sum(found) == found[1] > 0
            told = request(prompt=[*beginning, 22], max_tokens=4, sampling=Sampling(prompt_logprobs=1))
            await collect(engine, told)  # has to be computed
            assert scrape(serving)("qspec_prefix_cache_queries_total") == 26
    run(test)


def test_memory_is_the_budget_by_owner() -> None:
    pair = Pair()
    serving = Serving(model="toy", pairs=(pair,))
    description = FakeVerifier().describe()
    memory = (
        MemoryItem(name="weights", bytes=1000, shared=True, mapped_file=True),
        MemoryItem(name="buffers", bytes=30, shared=False),
        MemoryItem(name="batch state (host memory)", bytes=5, shared=True),
    )
    pair.verifier = replace(description, memory=memory)
    name, now = "qspec_memory_bytes", scrape(serving)
    assert now(name, owner="arena", purpose="weights", device="host", mapped_file="true") == 1000
    assert now(name, owner="verifier", purpose="buffers", device="host", mapped_file="false") == 30
    on_gpu = replace(description.arena, backend=ArenaBackend.CUDA_IPC)
    pair.verifier = replace(pair.verifier, arena=on_gpu)
    now = scrape(serving)
    assert now(name, owner="verifier", purpose="buffers", device="gpu", mapped_file="false") == 30
    assert now(name, owner="arena", purpose="batch state (host memory)", device="host", mapped_file="false") == 5


def test_workers_restarts_and_epochs() -> None:
    serving = Serving(model="toy", pairs=(Pair(verifier_restarts=2, drafter_restarts=3, epochs=4),))
    now = scrape(serving)
    assert now("qspec_worker_restarts_total", worker="verifier") == 2
    assert now("qspec_worker_restarts_total", worker="drafter") == 3
    assert now("qspec_epochs_total") == 4
    assert now("qspec_worker_attached", worker="verifier") == now("qspec_up") == 0


def test_a_scrape_has_the_catalogue_from_the_first_moment() -> None:
    pair = Pair()
    serving = Serving(model="toy", pairs=(pair,))
    now = scrape(serving)
    assert now.types == {spec.name: spec.kind.value for spec in METRICS}
    assert now.helps == {spec.name: spec.help for spec in METRICS}
    pair.verifier = FakeVerifier().describe()
    pair.drafter = FakeDrafter().attach(pair.verifier)
    labels = {spec.name: frozenset(spec.labels) for spec in METRICS}
    assert scrape(serving).labels == labels
    assert {spec.kind for spec in METRICS} == set(Kind)
