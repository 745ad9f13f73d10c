"""The public service over a real socket, with fake workers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from coordinator.pair import Pair, PairState
from coordinator.service import GenerationService
from coordinator.serving import ServerState, Serving
from qspec.errors import InvalidInput
from qspec.interfaces import DrafterDescription, Sampling
from qspec.rpc.errors import from_rpc_error
from qspec.rpc.server import RpcServer, Service
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.coordinator.fake_constraints import FakeConstraints
from tests.coordinator.stack_in_memory import OnePair, running_engine
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text


class WordTokenizer:
    """Token ids written as numbers: ``1 2 3``."""

    vocab_size = 97
    most_bytes_per_token = 100  # with some blanks

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def render_chat(self, messages: object) -> str:
        return "1 2 3"

    encode_rendered = encode


@contextlib.asynccontextmanager
async def served(
    directory: Path, verifier: FakeVerifier, drafter: FakeDrafter | None = None, *, max_active: int = 8,
    channel_options: Sequence[tuple[str, int]] = (), **engine_options: Any,
) -> AsyncIterator[tuple[pb_grpc.GenerationServiceStub, Serving, OnePair]]:
    serving = Serving(model="toy", max_waiting=max(0, max_active - verifier.describe().max_slots))
    service = GenerationService(serving)
    server = RpcServer(
        [Service(name="qspec.v1.GenerationService",
                 register=lambda s: pb_grpc.add_GenerationServiceServicer_to_server(service, s))], public=True)
    address = await server.start(f"unix:{directory}/coordinator.sock")
    telemetry = engine_options.pop("telemetry", None)
    serving.telemetry = telemetry or serving.telemetry
    async with running_engine(
        verifier, drafter, max_active=max_active, telemetry=serving.telemetry, **engine_options
    ) as (engine, _):
        serving.router, serving.tokenizer, serving.constraints = engine, WordTokenizer(), FakeConstraints()
        serving.agreement.join(verifier.describe())
        serving.pairs = (Pair(stage=PairState.SERVING, engine=engine.engine, verifier=verifier.describe()),)
        serving.state = ServerState.SERVING
        try:
            async with grpc.aio.insecure_channel(address, options=list(channel_options)) as channel:
                yield pb_grpc.GenerationServiceStub(channel), serving, engine
        finally:
            await server.stop(0.2)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_generate_streams_deltas_and_ends_with_the_figures(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01)
        async with served(tmp_path, verifier, FakeDrafter(verifier)) as (stub, _, _):
            request = pb.GenerateRequest(text="1 2 3", max_tokens=20, draft_length=4)
            pieces = [piece async for piece in stub.Generate(request)]
            tokens = continue_text([1, 2, 3], 20, Sampling(), 97)
            assert [token for piece in pieces for token in piece.token_ids] == tokens
            assert "".join(piece.text for piece in pieces) == "".join(f"{token}," for token in tokens)
            assert len(pieces) > 1
            assert all(piece.finish_reason == pb.FINISH_REASON_UNSPECIFIED for piece in pieces[:-1])
            last = pieces[-1]
            assert last.finish_reason == pb.FINISH_REASON_LENGTH and not last.HasField("matched_stop")
            assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 20)
            assert last.usage.tokens_per_second > 0
            stats = last.speculation
            assert sum(stats.accepted_per_position) == stats.accepted > 0
            assert sum(stats.drafted_per_position) == stats.drafted > stats.accepted
            assert sum(stats.rounds_per_draft_length) == stats.rounds
    run(test)


def test_usage_tells_what_was_not_computed_again(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(prefix_cache=True, num_blocks=256)
        async with served(tmp_path, verifier, FakeDrafter(verifier)) as (stub, _, _):
            async def cached(**fields: Any) -> dict[int, int]:
                request = pb.GenerateRequest(text="1 2 3 4 5 6 7 8 9 10", max_tokens=5, **fields)
                pieces = [piece async for piece in stub.Generate(request)]
                return {p.choice: p.usage.cached_prompt_tokens for p in pieces if p.finish_reason}
            assert await cached(n=3, cache_salt="a") == {0: 0, 1: 8, 2: 8}  # blocks of 4; the first one's is shared
            assert await cached() == {0: 0}
            assert await cached(prompt_logprobs=1) == {0: 0}
            assert await cached() == {0: 8}
    run(test)


def test_matched_stop_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, _, _):
            fourth = continue_text([1, 2, 3], 4, Sampling(), 97)[3]
            pieces = [p async for p in stub.Generate(pb.GenerateRequest(text="1 2 3", stop=[f",{fourth},", "nowhere"]))]
            assert pieces[-1].finish_reason == pb.FINISH_REASON_STOP_STRING
            assert pieces[-1].matched_stop == f",{fourth},"
    run(test)


def test_bad_request_names_every_field_and_the_server_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, _, engine):
            bad = pb.GenerateRequest(text="", max_tokens=0, temperature=math.nan, top_p=0.0, stop=[""], draft_length=99)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(bad).read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            error = from_rpc_error(raised.value)
            assert isinstance(error, InvalidInput)
            assert [violation.field for violation in error.violations] == [
                "text", "max_tokens", "temperature", "top_p", "draft_length", "stop[0]"]
            assert engine.active == 0
            good = pb.GenerateRequest(text="1", max_tokens=3)
            assert sum(len(piece.token_ids) for piece in [p async for p in stub.Generate(good)]) == 3
    run(test)


@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_client_that_leaves_frees_its_slot(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01)
        async with served(tmp_path, verifier) as (stub, _, engine):
            request = pb.GenerateRequest(text="1 2 3", max_tokens=250)
            call = stub.Generate(request, timeout=0.3 if way == "deadline" else None)
            await call.read()
            assert engine.running == 1
            seen = len(verifier.batches)
            if way == "cancel":
                call.cancel()
            await until(lambda: engine.running == 0 and engine.active == 0)
            if way == "cancel":
                assert len(verifier.batches) - seen < 20  # of 250
    run(test)


def test_full_server_says_when_to_try_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.01), max_active=1) as (stub, _, _):
            first = stub.Generate(pb.GenerateRequest(text="1", max_tokens=100))
            await first.read()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(pb.GenerateRequest(text="1")).read()
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]
            assert status is not None
            info = error_details_pb2.RetryInfo()
            assert status.details[0].Unpack(info)
            assert 0 < info.retry_delay.ToNanoseconds() < 10e9  # the first takes a second or so
            first.cancel()
    run(test)


@pytest.mark.parametrize(
    ("state", "text"), [(ServerState.LOADING, "not ready yet"), (ServerState.DRAINING, "shutting down")])
def test_unavailable_but_not_silent(state: ServerState, text: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, serving, _):
            serving.state = state
            generating = stub.Generate(pb.GenerateRequest(text="1")).read()
            for call in (generating, stub.Tokenize(pb.TokenizeRequest(text="1"))):
                with pytest.raises(grpc.aio.AioRpcError, match=text) as raised:
                    await call
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert info.state == (pb.SERVER_STATE_LOADING if text == "not ready yet" else pb.SERVER_STATE_DRAINING)
    run(test)


def test_server_info(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(prefix_cache=True)
        async with served(tmp_path, verifier) as (stub, serving, router):
            router.engine._loop._ledger.preemptions = 3
            serving.pairs[0].drafter = FakeDrafter().attach(verifier.describe())
            serving.pairs[0].drafter_restarts = 3
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert (info.model, info.verify_method, info.draft_method) == ("toy", "none (toy)", "toy")
            assert (info.max_slots, info.max_model_len, info.max_draft_length) == (4, 256, 8)
            assert info.row_invariant and info.drafter_restarts == 3
            assert (info.vocab_size, info.max_batch_rows, info.prefix_cache, info.preemptions) == (97, 64, True, 3)
            limits = info.request_limits
            assert (limits.max_texts, limits.max_stop_strings, limits.max_request_bytes) == (8, 16, 4 * 2**20)
            request = pb.GenerateRequest(text="1", n=limits.max_texts + 1)
            with pytest.raises(grpc.aio.AioRpcError, match=r"^[^(]*n: this server has room for 8 texts") as raised:
                await stub.Generate(request).read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert [(line.owner, line.shared) for line in info.memory] == [("arena", True)]
    run(test)


def test_drafters_that_differ_are_all_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, serving, _):
            first = serving.pairs[0]
            drafters = [DrafterDescription(epoch=1, method=method, kernel="k", memory=()) for method in ("fp8", "w8a8")]
            serving.pairs = tuple(
                Pair(name=str(number), stage=PairState.SERVING, engine=first.engine, verifier=first.verifier,
                     drafter=drafter)
                for number, drafter in enumerate([drafters[0], None, drafters[1], drafters[0]]))
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert (info.draft_method, info.draft_kernel) == ("fp8, w8a8", "k")
            assert [pair.draft_method for pair in info.pairs] == ["fp8", "", "w8a8", "fp8"]
    run(test)


def test_tokenize(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, _, _):
            assert list((await stub.Tokenize(pb.TokenizeRequest(text="5 6"))).token_ids) == [5, 6]
            with pytest.raises(grpc.aio.AioRpcError, match="prompt: is missing"):
                await stub.Tokenize(pb.TokenizeRequest())
    run(test)
