"""Both clients against a real socket with fake workers behind it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from coordinator.drain import drain
from coordinator.serving import ServerState
from qspec.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Delta,
    FinishReason,
    InvalidInput,
    Message,
    QspecError,
    QueueFull,
    RetryPolicy,
    Unavailable,
    WorkerLost,
    collect,
)
from qspec.interfaces import Sampling
from qspec.v1 import generation_pb2 as pb
from tests.clients.scripted_server import scripted_server
from tests.coordinator.test_service import run, served, until
from tests.fakes import FakeDrafter, FakeVerifier
from tests.toy_model import continue_text

_Value = TypeVar("_Value")
OPTIONS: dict[str, Any] = {"max_tokens": 12, "draft_length": 4, "seed": 7, "temperature": 1.0}


def address(directory: Path) -> str:
    return f"unix:{directory}/coordinator.sock"


async def blocking(directory: Path, use: Callable[[Client], _Value], **options: Any) -> _Value:
    """What ``use`` makes of a client, in a thread, while the server runs in this one."""
    def work() -> _Value:
        with Client(address(directory), **options) as client:
            return use(client)
    return await asyncio.to_thread(work)


def test_both_clients_stream_the_same_deltas(tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.02)  # rounds that are not worth a message each become one
        async with served(tmp_path, verifier, FakeDrafter(verifier)):
            ours = await blocking(tmp_path, lambda client: list(client.generate("1 2 3", **OPTIONS)))
            async with AsyncClient(address(tmp_path)) as client:
                theirs = [delta async for delta in client.generate("1 2 3", **OPTIONS)]
                (whole,) = collect(theirs)
                assert (await client.complete([1, 2, 3], **OPTIONS)).token_ids == whole.token_ids
            expected = continue_text([1, 2, 3], 12, Sampling(temperature=1.0, seed=7), 97)
            for deltas in (ours, theirs):
                assert len(deltas) > 1 and all(isinstance(delta, Delta) for delta in deltas)
                assert [token for delta in deltas for token in delta.token_ids] == expected
                assert "".join(delta.text for delta in deltas) == "".join(f"{token}," for token in expected)
                assert [delta.finish is None for delta in deltas] == [True] * (len(deltas) - 1) + [False]
                assert deltas[0].request_id and not any(delta.request_id for delta in deltas[1:])
            finish = whole.finish
            assert finish.reason is FinishReason.LENGTH and finish.usage.completion_tokens == 12
            assert sum(finish.speculation.accepted_per_position) == finish.speculation.accepted > 0
    run(test)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_server_that_dies_amid_a_text_is_one_error_and_asked_no_second_time(asynchronous: bool) -> None:
    texts: list[str] = []

    async def read(address: str) -> None:
        async with AsyncClient(address) as client:
            async for delta in client.generate("die"):
                texts.append(delta.text)

    with scripted_server() as address, pytest.raises(WorkerLost) as caught:
        if asynchronous:
            asyncio.run(read(address))
        else:
            with Client(address) as client:
                for delta in client.generate("die"):
                    texts.append(delta.text)
    assert texts == ["PIECE"]
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_whole_texts(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()):
            async with AsyncClient(address(tmp_path)) as client:
                one = await client.complete("1 2 3", logprobs=2, **OPTIONS)
                many = await client.complete_all("1 2 3", n=3, echo=True, **OPTIONS)
                with pytest.raises(InvalidInput, match=r"n: complete\(\) gives one text, not 3"):
                    await client.complete("1", n=3)
            also = await blocking(tmp_path, lambda client: client.complete("1 2 3", logprobs=2, **OPTIONS))
            assert (also.text, also.token_ids, also.logprobs) == (one.text, one.token_ids, one.logprobs)
            assert [len(each.top) for each in one.logprobs] == [2] * 12
            assert [each.choice for each in many] == [0, 1, 2] and many[0].token_ids == one.token_ids
            assert len({each.token_ids for each in many}) == 3
            assert all(each.prompt_token_ids == (1, 2, 3) for each in many)
            threes = await blocking(tmp_path, lambda client: client.complete_all("1 2 3", n=3, **OPTIONS))
            assert [each.token_ids for each in threes] == [each.token_ids for each in many]
    run(test)


def test_stop_strings_and_tokens_are_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()), AsyncClient(address(tmp_path)) as client:
            fourth = continue_text([1, 2, 3], 4, Sampling(), 97)[3]
            stopped = await client.complete("1 2 3", stop=[f",{fourth},"])
            assert (stopped.finish.reason, stopped.finish.matched_stop) == (FinishReason.STOP_STRING, f",{fourth},")
            stopped = await client.complete("1 2 3", stop_token_ids=[fourth])
            assert (stopped.finish.reason, stopped.finish.matched_stop_token) == (FinishReason.STOP_TOKEN, fourth)
    run(test)


@pytest.mark.parametrize("way", ["close", "leave", "task", "client"])
def test_leaving_cancels_on_the_server(way: str, tmp_path: Path) -> None:
    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01)
        async with served(tmp_path, verifier) as (_, _, engine), AsyncClient(address(tmp_path)) as client:
            deltas = client.generate("1 2 3", max_tokens=250)
            await anext(deltas)
            assert engine.running == 1
            if way == "close":
                await deltas.aclose()
            elif way == "leave":
                async with contextlib.aclosing(deltas):
                    async for _ in deltas:
                        break
            elif way == "task":
                task = asyncio.ensure_future(client.complete("1 2 3", max_tokens=250))
                await until(lambda: engine.running == 2)
                task.cancel()
                await until(lambda: engine.running == 1)
                await deltas.aclose()
            else:
                await client.close()
            await until(lambda: engine.active == 0)
            assert len(verifier.batches) < 120  # of 250
    run(test)


def test_leaving_a_blocking_loop_cancels_on_the_server(tmp_path: Path) -> None:
    def leave(client: Client) -> None:
        for _ in client.generate("1 2 3", max_tokens=250):
            break

    def close(client: Client) -> None:
        deltas = client.generate("1 2 3", max_tokens=250)
        next(deltas)
        deltas.close()

    def use_and_wait(use: Callable[[Client], None], freed: threading.Event, client: Client) -> None:
        use(client)
        freed.wait(10)  # the connection is still open: it is the call that ended

    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.01)
        async with served(tmp_path, verifier) as (_, _, engine):
            for use in (leave, close):
                freed = threading.Event()
                working = asyncio.ensure_future(blocking(tmp_path, partial(use_and_wait, use, freed)))
                await until(lambda: engine.active == 1)
                await until(lambda: engine.active == 0)
                freed.set()
                await working
            assert len(verifier.batches) < 120  # of 500
    run(test)


def test_ctrl_c_reaches_a_client_that_waits(tmp_path: Path) -> None:
    code = ("import sys, time\nfrom qspec.client import Client\n"
            "client = Client(sys.argv[1])\n"
            "try:\n"
            "    for delta in client.generate('1 2 3', max_tokens=250):\n        print('.', flush=True)\n"
            "except KeyboardInterrupt:\n"
            "    print('interrupted', flush=True)\n    time.sleep(60)\n")  # its connection stays open

    async def test() -> None:
        verifier = FakeVerifier(delay_s=0.02)
        async with served(tmp_path, verifier) as (_, _, engine):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, address(tmp_path), stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            await process.stdout.readline()
            process.send_signal(signal.SIGINT)
            while await process.stdout.readline() != b"interrupted\n":
                pass
            await until(lambda: engine.active == 0)
            process.kill()
            await process.wait()
    run(test)


def test_errors_have_their_fields(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()), AsyncClient(address(tmp_path)) as client:
            with pytest.raises(InvalidInput) as raised:
                await client.complete("", max_tokens=0, top_p=0.0, stop=[""])
            fields = [each.field for each in raised.value.field_violations]
            assert fields == ["text", "max_tokens", "top_p", "stop[0]"]
            with pytest.raises(InvalidInput) as raised:
                await blocking(tmp_path, lambda blocked: blocked.complete("1", max_tokens=0))
            assert [each.field for each in raised.value.field_violations] == ["max_tokens"]
    run(test)


def test_a_deadline_holds_for_the_text_and_for_the_wait(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier(delay_s=0.02), max_active=1) as (_, _, engine):
            async with AsyncClient(address(tmp_path)) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.complete("1 2 3", max_tokens=250, deadline_s=0.3)
            await until(lambda: engine.active == 0)
            with pytest.raises(DeadlineExceeded):
                await blocking(tmp_path, lambda c: c.complete("1 2 3", max_tokens=250, deadline_s=0.3))
    run(test)


def test_a_deadline_passes_where_nothing_is_said(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(f"{tmp_path}/silent.sock")
            silent.listen()
            async with AsyncClient(f"unix:{tmp_path}/silent.sock") as client:
                for call in (client.complete("1", deadline_s=0.2), client.server_info(deadline_s=0.2)):
                    with pytest.raises(DeadlineExceeded, match=r"the deadline passed before the server at unix:.* was"):
                        await call
    run(test)


def test_a_full_server_is_asked_again_and_a_text_that_has_begun_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            served(tmp_path, FakeVerifier(delay_s=0.01), max_active=1) as (_, serving, engine),
            AsyncClient(address(tmp_path)) as holder,
        ):
            first = holder.generate("7 8", max_tokens=100)
            await anext(first)
            with pytest.raises(QueueFull) as raised:
                await blocking(tmp_path, lambda c: c.complete("1"), retry=RetryPolicy(attempts=1))
            assert raised.value.retry_after_s is not None and raised.value.retry_after_s > 0
            waiting = asyncio.ensure_future(
                blocking(tmp_path, lambda c: c.complete("1 2", max_tokens=5), retry=RetryPolicy(attempts=50)))
            async with AsyncClient(address(tmp_path), retry=RetryPolicy(attempts=50)) as other:
                also = asyncio.ensure_future(other.complete("1 2", max_tokens=5))
                assert [len(each.token_ids) for each in await asyncio.gather(waiting, also)] == [5, 5]
            await first.aclose()
            await until(lambda: engine.active == 0)
            begun = holder.generate("7 8", max_tokens=250)
            await anext(begun)
            await drain(serving, 0.05)
            with pytest.raises(Unavailable, match="shutting down"):
                async for _ in begun:
                    pass
    run(test)


def test_a_loading_server_is_asked_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, FakeVerifier()) as (_, serving, _), AsyncClient(address(tmp_path)) as client:
            serving.state = ServerState.LOADING
            assert (await client.server_info()).state == pb.SERVER_STATE_LOADING
            waiting = asyncio.ensure_future(client.tokenize("5 6"))
            await asyncio.sleep(0.1)
            serving.state = ServerState.SERVING
            assert await waiting == (5, 6)
            assert await blocking(tmp_path, lambda c: c.tokenize([Message("user", "5 6")])) == (1, 2, 3)
    run(test)


def test_nobody_there(tmp_path: Path) -> None:
    async def test() -> None:
        async with AsyncClient(address(tmp_path)) as client:
            with pytest.raises(WorkerLost, match=r"the server at unix:.* is gone or late"):
                await client.complete("1")
    run(test)


def test_a_server_that_goes_away(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            served(tmp_path, FakeVerifier(delay_s=0.02)) as (_, _, engine), AsyncClient(address(tmp_path)) as client,
        ):
            deltas = client.generate("1", max_tokens=250)
            await anext(deltas)
            await asyncio.to_thread(engine.engine.close)
            with pytest.raises(QspecError, match="shutting down"):
                async for _ in deltas:
                    pass
    run(test)
