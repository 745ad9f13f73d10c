"""Admission and flow over a real socket, with fake workers behind it: who waits, who gives way, who is cut off."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from coordinator.drain import drain
from qspec.errors import DeadlineExceeded, InvalidInput, QspecError, QueueFull, SlowReader, Unavailable
from qspec.interfaces import Sampling, VerifyAnswer, VerifyBatch
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.coordinator.stack_in_memory import NumberText
from tests.coordinator.test_service import served, until
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text

SMALL_WINDOW = [("grpc.http2.bdp_probe", 0)]
"""The transport keeps no more than 64 KiB for a client that does not read."""


class LongText(NumberText):
    """Two thousand characters a token: fills what the transport keeps for a client that does not read."""

    def push(self, token_ids: object) -> str:
        """The tokens' text."""
        return "x" * 2000


def run(test: Callable[[], Awaitable[None]], timeout_s: float = 8) -> None:
    asyncio.run(asyncio.wait_for(test(), timeout_s))  # type: ignore[arg-type]


def ask(
    stub: pb_grpc.GenerationServiceStub, text: str = "1 2 3", *, client: str = "", tokens: int = 200,
    timeout: float | None = None, **fields: object,
) -> grpc.aio.UnaryStreamCall:  # type: ignore[type-arg]  # generic in the stubs only
    """A call; ``client`` is told in its metadata."""
    request = pb.GenerateRequest(text=text, max_tokens=tokens, draft_length=0, **fields)  # type: ignore[arg-type]
    metadata = [("qspec-client-id", client)] if client else []
    return stub.Generate(request, metadata=metadata, timeout=timeout)  # type: ignore[return-value, no-any-return]


async def error_of(call: object) -> QspecError:
    """The error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await tokens_of(call)
    return from_rpc_error(raised.value)


async def tokens_of(call: object) -> list[int]:
    """All tokens of a call that have not been read."""
    tokens: list[int] = []
    while (piece := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        tokens += piece.token_ids
    return tokens


class GatedVerifier(FakeVerifier):
    """Once ``closed``, a round ends when the test says so."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.closed = False
        self.gate = threading.Semaphore(0)

    def verify(self, batch: VerifyBatch) -> VerifyAnswer:
        """See ``Verifier``."""
        held = self.closed  # not the round that is under way when it is closed
        answer = super().verify(batch)
        if held:
            self.gate.acquire(timeout=5)
        return answer

    async def in_round(self) -> int:
        """Rounds until now, the one included that waits at the gate."""
        seen = len(self.batches)
        self.closed = True
        await until(lambda: len(self.batches) > seen)
        return len(self.batches)

    def open(self) -> None:
        """Let all rounds end."""
        self.closed = False
        self.gate.release()


def test_deadlines_reach_the_workers(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with served(tmp_path, verifier) as (stub, _, _):
            verifier.batches.clear()
            await tokens_of(ask(stub, tokens=5))
            assert {batch.time_left_s for batch in verifier.batches} == {None}
            verifier.batches.clear()
            await tokens_of(ask(stub, tokens=5, timeout_s=50.0))
            left = [batch.time_left_s for batch in verifier.batches if batch.verifications]
            assert len(left) == 5 and all(seconds is not None and 40.0 < seconds <= 50.0 for seconds in left)
    run(test)


@pytest.mark.parametrize("way", ["cancel", "timeout_s", "call's deadline"])
def test_slot_and_blocks_are_free_after_the_round_in_progress(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = GatedVerifier()
        verifier.delay_s = 0.01
        async with served(tmp_path, verifier) as (stub, _, engine):
            call = ask(
                stub, tokens=250, timeout=1.0 if way == "call's deadline" else None,
                **({"timeout_s": 1.0} if way == "timeout_s" else {}))
            await call.read()
            seen = await verifier.in_round()
            if way == "cancel":
                call.cancel()
            await until(lambda: engine.active == 0)  # the server knows; the round in progress still has it
            assert engine.running == 1 and not any(batch.releases for batch in verifier.batches[2:])
            verifier.open()
            await until(lambda: engine.running == 0 and engine.free_blocks == 64)
            # The very next batch gives it back, and verifies nothing any more.
            assert len(verifier.batches) == seen + 1
            assert verifier.batches[-1].releases and not verifier.batches[-1].verifications
    run(test)


@pytest.mark.parametrize("way", ["field", "call"])
def test_deadline_while_running(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.03)
        async with served(tmp_path, verifier) as (stub, _, engine):
            other = asyncio.ensure_future(tokens_of(ask(stub, "4 5", tokens=30)))
            limits = {"timeout_s": 0.3} if way == "field" else {"timeout": 0.3}
            started = time.monotonic()
            call = ask(stub, **limits)  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await tokens_of(call)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 0.25 < time.monotonic() - started < 2
            if way == "field":
                error = from_rpc_error(raised.value)
                assert isinstance(error, DeadlineExceeded) and "of at most 200 tokens" in str(error)
            await until(lambda: engine.running == 1)
            assert len(await other) == 30
    run(test)


@pytest.mark.parametrize("way", ["field", "call"])
def test_deadline_while_waiting(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.02, max_slots=1)
        async with served(tmp_path, verifier) as (stub, _, engine):
            first = ask(stub)
            await first.read()
            limits = {"timeout_s": 0.1} if way == "field" else {"timeout": 0.1}
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await tokens_of(ask(stub, "4", **limits))  # type: ignore[arg-type]
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if way == "field":
                assert "before its first token" in str(from_rpc_error(raised.value))
            await until(lambda: engine.active == 1 and engine.waiting == 0)
            first.cancel()
            await until(lambda: engine.running == 0)
            # It was never given a slot.
            assert sum(bool(batch.admissions) for batch in verifier.batches[2:]) == 1
    run(test)


def test_deadline_holds_while_a_round_hangs(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier()
        async with served(tmp_path, verifier) as (stub, _, _):
            verifier.delay_s = 1.0
            started = time.monotonic()
            error = await error_of(ask(stub, timeout_s=0.2))
            assert isinstance(error, DeadlineExceeded) and time.monotonic() - started < 0.9
    run(test)


def test_slow_reader_is_cut_off_and_slows_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_model_len=1024, num_blocks=1024, delay_s=0.001)
        async with served(
            tmp_path, verifier, max_buffered_tokens=16, text_source=LongText, channel_options=SMALL_WINDOW,
        ) as (stub, _, engine):
            slow = ask(stub, tokens=1000)
            await slow.read()
            (stream,) = engine.admission.streams
            most = 0
            while engine.active:
                most = max(most, stream.buffered_tokens)
                await asyncio.sleep(0.001)
            assert 0 < most <= 16
            assert len(stream._pieces) <= 1  # the error; nothing else is kept for it
            made = len(stream.generation.sequence.tokens)
            assert made < 1000
            assert len(await tokens_of(ask(stub, "4 5", tokens=40))) == 40
            assert len(stream.generation.sequence.tokens) == made
            error = await error_of(slow)  # reads on, and learns why its text ends
            assert isinstance(error, SlowReader)
            assert "tokens behind the text, and 16 are kept for it" in str(error) and "\n" not in str(error)
    run(test)


def test_end_of_a_text_is_kept_for_a_while_only(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(max_model_len=1024, num_blocks=1024)
        async with served(
            tmp_path, verifier, max_buffered_tokens=1024, text_source=LongText, unread_s=0.2,
            channel_options=SMALL_WINDOW,
        ) as (stub, _, engine):
            slow = ask(stub, tokens=500)
            await slow.read()
            (stream,) = engine.admission.streams
            await until(lambda: engine.active == 0)  # all made: it holds no slot and no place
            assert stream.buffered_tokens > 300
            await until(lambda: len(stream._pieces) == 1)
            error = await error_of(slow)
            assert isinstance(error, SlowReader) and "did not take the end of its text within 0.2 s" in str(error)
            assert len(await tokens_of(ask(stub, "4 5", tokens=20))) == 20
    run(test)


def test_request_id_is_told_and_refused_while_in_use(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.01)) as (stub, _, engine):
            first = ask(stub, request_id="mine")
            assert (await first.read()).request_id == "mine"  # type: ignore[union-attr]
            assert (await first.read()).request_id == ""  # type: ignore[union-attr]
            error = await error_of(ask(stub, request_id="mine"))
            assert isinstance(error, InvalidInput)
            assert [violation.field for violation in error.violations] == ["request_id"]
            assert len(await tokens_of(ask(stub, client="another", request_id="mine", tokens=2))) == 2
            chosen = [piece.request_id async for piece in ask(stub, tokens=3)]
            assert chosen[0].startswith("request-") and set(chosen[1:]) == {""}
            first.cancel()
            await until(lambda: engine.active == 0)
            assert len(await tokens_of(ask(stub, request_id="mine", tokens=2))) == 2
    run(test)


@pytest.mark.parametrize("name", ["", "a b", "x" * 129])
def test_client_id_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (stub, _, _):
            call = stub.Generate(pb.GenerateRequest(text="1"), metadata=[("qspec-client-id", name)])
            error = await error_of(call)
            assert isinstance(error, InvalidInput)
            assert [violation.field for violation in error.violations] == ["metadata qspec-client-id"]
    run(test)


def test_clients_take_turns_and_priorities_order_a_client_s_own(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.002, max_slots=1)
        async with served(tmp_path, verifier, max_active=40) as (stub, _, engine):
            ended: list[str] = []

            async def one(client: str, name: str, priority: int) -> None:
                assert len(await tokens_of(ask(stub, "4 5", client=client, tokens=5, priority=priority))) == 5
                ended.append(name)

            first = ask(stub, client="z")  # holds the slot while the others come
            await first.read()
            calls = []
            for number in range(6):
                calls.append(asyncio.ensure_future(one("many", f"many{number}", 1 if number == 5 else 0)))
                await until(lambda number=number: engine.waiting == number + 1)
            for number in range(2):
                calls.append(asyncio.ensure_future(one("few", f"few{number}", 0)))
                await until(lambda number=number: engine.waiting == 7 + number)
            first.cancel()
            await asyncio.gather(*calls)
            assert ended == ["many5", "few0", "many0", "few1", "many1", "many2", "many3", "many4"]
    run(test)


def test_turns_are_counted_in_tokens(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.002, max_slots=1)
        async with served(tmp_path, verifier, max_active=40) as (stub, _, engine):
            ended: list[str] = []

            async def one(client: str, tokens: int) -> None:
                assert len(await tokens_of(ask(stub, "4 5", client=client, tokens=tokens))) == tokens
                ended.append(client)

            first = ask(stub, client="z")
            await first.read()
            calls = []
            for number, (client, tokens) in enumerate([("long", 20)] * 3 + [("short", 4)] * 6, 1):
                calls.append(asyncio.ensure_future(one(client, tokens)))
                await until(lambda number=number: engine.waiting == number)
            first.cancel()
            await asyncio.gather(*calls)
            # 22 tokens of "long" (two are the prompt's), then as many of "short", whose requests have 6 each.
            assert ended == ["long", "short", "short", "short", "short", "long", "short", "short", "long"]
    run(test)


def test_full_queue_makes_room_for_a_client_with_less_in_it(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01, max_slots=1)
        async with served(tmp_path, verifier, max_active=5) as (stub, _, engine):
            calls = [ask(stub, client="many", tokens=50)]
            await calls[0].read()
            calls += [ask(stub, client="many", tokens=10) for _ in range(4)]
            await until(lambda: engine.waiting == 4)
            assert isinstance(await error_of(ask(stub, client="many")), QueueFull)
            few = asyncio.ensure_future(tokens_of(ask(stub, client="few", tokens=10)))
            ends = await asyncio.gather(*(tokens_of(call) for call in calls), return_exceptions=True)
            errors = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
            assert len(errors) == 1 and sum(isinstance(end, list) for end in ends) == 4
            error = from_rpc_error(errors[0])
            assert isinstance(error, QueueFull) and error.retry_after_s is not None and error.retry_after_s > 0
            assert "a client with less in it came" in str(error)
            assert len(await few) == 10
    run(test)


def test_retry_estimate_follows_what_is_measured(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.02, max_slots=1)
        async with served(tmp_path, verifier, max_active=1) as (stub, _, _):
            first = ask(stub, tokens=50)
            for _ in range(10):
                await first.read()
            error = await error_of(ask(stub))
            assert isinstance(error, QueueFull) and error.retry_after_s is not None
            asked = time.monotonic()
            await tokens_of(first)
            took = time.monotonic() - asked
            assert took / 3 < error.retry_after_s < took * 3
    run(test)


def test_server_info_tells_limits_and_load(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01, max_slots=2)
        async with served(tmp_path, verifier, max_active=7, max_buffered_tokens=99) as (stub, _, engine):
            calls = [ask(stub, tokens=90) for _ in range(2)]
            await calls[0].read()
            calls += [ask(stub) for _ in range(3)]
            await until(lambda: engine.waiting == 3 and engine.free_blocks < 64)
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert (info.max_slots, info.max_waiting, info.max_buffered_tokens) == (2, 5, 99)
            assert (info.running, info.waiting) == (2, 3)
            assert (info.num_blocks, info.block_size) == (64, 4) and 0 < info.free_blocks < 64
            for call in calls:
                call.cancel()
            await until(lambda: engine.running == 0 and engine.free_blocks == 64)
    run(test)


def test_drain_lets_requests_end_and_refuses_new_ones(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.005, max_slots=1)
        async with served(tmp_path, verifier) as (stub, serving, _):
            calls = [asyncio.ensure_future(tokens_of(ask(stub, tokens=20))) for _ in range(2)]  # one of them waits
            while serving.router is None or serving.router.active < 2:
                await asyncio.sleep(0.005)
            draining = asyncio.ensure_future(drain(serving, 20.0))
            await asyncio.sleep(0)
            refused = await error_of(ask(stub))
            assert isinstance(refused, Unavailable) and refused.retry_after_s == 5.0
            await draining
            assert [len(tokens) for tokens in await asyncio.gather(*calls)] == [20, 20]
    run(test)


@pytest.mark.parametrize("way", ["grace over", "hurried"])
def test_what_does_not_end_in_time_is_told_to_ask_again(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.02, max_slots=1)
        async with served(tmp_path, verifier) as (stub, serving, engine):
            calls = [asyncio.ensure_future(error_of(ask(stub))) for _ in range(2)]
            await until(lambda: engine.active == 2)
            draining = asyncio.ensure_future(drain(serving, 0.1 if way == "grace over" else 60.0))
            await asyncio.sleep(0.05)
            if way == "hurried":
                draining.cancel()
            for error in await asyncio.wait_for(asyncio.gather(*calls), 5):
                assert isinstance(error, Unavailable) and error.retry_after_s == 5.0
                assert "did not finish this request" in str(error)
            await until(lambda: engine.running == 0 and engine.active == 0)
    run(test)


def test_two_hundred_streams_all_finish_and_none_starves(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(
            max_slots=200, num_blocks=4000, max_model_len=64, max_batch_rows=2000, delay_s=0.002)
        async with served(tmp_path, verifier, FakeDrafter(verifier), max_active=200) as (stub, _, engine):
            progress = [0] * 200
            spread: list[float] = []
            most_buffered = 0

            async def one(number: int) -> None:
                nonlocal most_buffered
                request = pb.GenerateRequest(text=f"{number % 97} {number // 97}", max_tokens=48, seed=number)
                tokens: list[int] = []
                async for piece in stub.Generate(request):
                    tokens += piece.token_ids
                    progress[number] = len(tokens)
                    most_buffered = max(most_buffered, *(stream.buffered_tokens for stream in engine.admission.streams),
                                        0)
                assert tokens == continue_text([number % 97, number // 97], 48, Sampling(seed=number), 97)

            async def look() -> None:
                while True:
                    if (median := statistics.median(progress)) >= 8:
                        spread.append(max(progress) / median)
                    await asyncio.sleep(0.002)

            looking = asyncio.ensure_future(look())
            await asyncio.gather(*(one(number) for number in range(200)))
            looking.cancel()
            assert progress == [48] * 200
            assert spread and statistics.median(spread) < 2  # max/median
            assert most_buffered <= 48 and engine.active == engine.waiting == 0
    run(test, 60)


def test_two_hundred_streams_over_few_slots_are_served_in_turn(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = GatedVerifier(max_slots=8, num_blocks=400, max_batch_rows=200)
        verifier.delay_s = 0.01
        async with served(tmp_path, verifier, max_active=201) as (stub, _, engine):
            first = ask(stub, client="first")
            await first.read()
            held = await verifier.in_round()

            async def one(number: int) -> None:
                client = number // 20  # all of the first one's come before those of the second
                assert len(await tokens_of(ask(stub, f"{client} 1 2", client=f"c{client}", tokens=12))) == 12

            asking = asyncio.gather(*(one(number) for number in range(200)))
            await until(lambda: engine.active == 201)  # turns are those of requests that wait
            first.cancel()
            verifier.delay_s = 0.0
            verifier.open()
            await asking
            turns = [chunk.token_ids[0] for batch in verifier.batches[held:] for chunk in batch.prefill_chunks]
            assert len(turns) == 200
            for share in range(20, 200, 20):  # nobody is ahead by more than the slots hold at once
                counts = [turns[:share].count(client) for client in range(10)]
                assert max(counts) - min(counts) <= 8, counts
            assert engine.active == engine.waiting == engine.running == 0
    run(test, 60)


