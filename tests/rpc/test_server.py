"""The server skeleton: health, reflection, errors, addresses, stopping."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from qspec.errors import InvalidInput, ModelError, QspecError
from qspec.rpc.errors import from_rpc_error
from qspec.rpc.options import MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES
from qspec.rpc.server import Service, serve
from qspec.v1 import verifier_pb2, verifier_pb2_grpc

NAME = "qspec.v1.VerifierService"
Health = health_pb2.HealthCheckResponse


class Servicer(verifier_pb2_grpc.VerifierServiceServicer):
    """Answers, or raises ``error``."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.kernel = ""

    async def Describe(self, request: verifier_pb2.DescribeRequest, context: Any) -> verifier_pb2.DescribeResponse:
        """Answer."""
        if self.error is not None:
            raise self.error
        return verifier_pb2.DescribeResponse(kernel=self.kernel)

    async def Verify(
        self, request_iterator: AsyncIterator[verifier_pb2.VerifyRequest], context: Any
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        """Echo the round."""
        async for request in request_iterator:
            if self.error is not None:
                raise self.error
            yield verifier_pb2.VerifyResponse(round=request.round)

    @property
    def service(self) -> Service:
        """For ``serve``."""
        return Service(name=NAME, register=self._register)

    def _register(self, server: grpc.aio.Server) -> None:
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server)


class Running:
    """A server in this event loop, and a channel to it."""

    def __init__(self, listen: str, **options: Any) -> None:
        self.servicer = Servicer()
        self.stop, self.loaded = asyncio.Event(), asyncio.Event()
        self.addresses: list[str] = []
        self.load_error: Exception | None = None
        self._listen, self._options = listen, options

    async def __aenter__(self) -> Running:
        self.task = asyncio.ensure_future(serve(
            [self.servicer.service], self._listen, prepare=self.prepare, on_serving=self.addresses.append,
            stop=self.stop, **{"grace_s": 0.5, **self._options},
        ))
        size = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        self.channel = grpc.aio.insecure_channel(self._listen, options=size)
        self.stub: Any = verifier_pb2_grpc.VerifierServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close(None)

    async def prepare(self) -> None:
        """What ``serve`` is told to do first."""
        await self.loaded.wait()
        if self.load_error is not None:
            raise self.load_error

    async def until_serving(self) -> None:
        """Let loading end and wait for SERVING."""
        self.loaded.set()
        while not self.addresses:
            await asyncio.sleep(0.005)

    async def health(self, name: str = NAME) -> int:
        """What the health service says."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        request = health_pb2.HealthCheckRequest(service=name)
        answer = await stub.Check(request, wait_for_ready=True, timeout=5)
        return int(answer.status)


@pytest.fixture
def listen() -> Iterator[str]:
    """A socket's address."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"unix:{directory}/s.sock"


async def failure(call: Any) -> QspecError:
    """What a call failed with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"\x0a\x05a"])
def test_a_request_that_is_no_message_is_refused_and_the_server_goes_on(content: bytes, listen: str) -> None:
    """What is no tag of a field, and a field that ends early."""
    async def scenario() -> None:
        async with Running(listen) as server:
            await server.until_serving()
            method = "/qspec.v1.VerifierService/Describe"
            read: Any = verifier_pb2.DescribeResponse.FromString
            error = await failure(server.channel.unary_unary(method, lambda raw: raw, read)(content))
            assert isinstance(error, InvalidInput)
            assert [violation.field for violation in error.violations] == ["request"]
            await server.stub.Describe(verifier_pb2.DescribeRequest())

    asyncio.run(scenario())


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_public_port_refuses_large_requests_unread(compression: grpc.Compression, listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen, public=True) as server:
            await server.until_serving()
            method = "/qspec.v1.VerifierService/Describe"
            call = server.channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as caught:
                await call(b" " * (MAX_REQUEST_BYTES + 1), compression=compression)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await server.stub.Describe(verifier_pb2.DescribeRequest())

    asyncio.run(scenario())


def test_health_follows_loading_and_stopping(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            assert [await server.health(name) for name in ("", NAME)] == [Health.NOT_SERVING] * 2
            assert server.addresses == []
            await server.until_serving()
            assert server.addresses == [listen]
            assert [await server.health(name) for name in ("", NAME)] == [Health.SERVING] * 2

    asyncio.run(scenario())


def test_not_serving_while_calls_in_flight_end(listen: str) -> None:
    async def scenario() -> None:
        drained = asyncio.Event()
        async with Running(listen, drain=drained.wait) as server:
            await server.until_serving()
            stream = server.stub.Verify()
            await stream.write(verifier_pb2.VerifyRequest(round=1))
            assert (await stream.read()).round == 1
            server.stop.set()
            while await server.health() != Health.NOT_SERVING:
                await asyncio.sleep(0.005)
            await stream.write(verifier_pb2.VerifyRequest(round=2))
            assert (await stream.read()).round == 2
            drained.set()
            await stream.done_writing()
            assert not await stream.read()  # the end of the stream
            await asyncio.wait_for(server.task, 5)

    asyncio.run(scenario())


def test_failure_to_load_ends_the_server(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            server.load_error = ModelError("no such model")
            server.loaded.set()
            with pytest.raises(ModelError):
                await asyncio.wait_for(server.task, 5)
            assert server.addresses == []

    asyncio.run(scenario())


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_it_at_once(second: signal.Signals, listen: str) -> None:
    async def scenario() -> None:
        told: list[str] = []

        async def drain() -> None:
            told.append("draining")
            try:
                await asyncio.sleep(60)
            finally:
                told.append("cancelled")

        async with Running(listen, drain=drain, grace_s=60.0) as server:
            await server.until_serving()
            stream = server.stub.Verify()
            await stream.write(verifier_pb2.VerifyRequest(round=1))
            assert (await stream.read()).round == 1  # a call that would last for ever
            os.kill(os.getpid(), signal.SIGTERM)
            while await server.health() != Health.NOT_SERVING or not told:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.1)
            assert told == ["draining"] and not server.task.done()
            os.kill(os.getpid(), second)
            await asyncio.wait_for(server.task, 5)
            assert told == ["draining", "cancelled"]

    asyncio.run(scenario())


def test_stopping_does_not_wait_for_loading(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            assert await server.health() == Health.NOT_SERVING
            server.stop.set()
            await asyncio.wait_for(server.task, 5)
            assert server.addresses == []

    asyncio.run(scenario())


def test_reflection_lists_the_services(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
            call = stub.ServerReflectionInfo(wait_for_ready=True, timeout=5)
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {service.name for service in (await call.read()).list_services_response.service}
            call.cancel()
            assert {NAME, "grpc.health.v1.Health"} <= names

    asyncio.run(scenario())


def test_exceptions_become_statuses_and_the_server_goes_on(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            await server.until_serving()
            for error in (InvalidInput.field("top_p", "too large"), RuntimeError("secret")):
                server.servicer.error = error
                unary = await failure(server.stub.Describe(verifier_pb2.DescribeRequest()))
                stream = server.stub.Verify()
                await stream.write(verifier_pb2.VerifyRequest(round=1))
                streamed = await failure(stream.read())
                for back in (unary, streamed):
                    assert isinstance(back, InvalidInput) is isinstance(error, InvalidInput)
                    assert "secret" not in str(back)
            server.servicer.error = None
            await server.stub.Describe(verifier_pb2.DescribeRequest())

    with caplog.at_level(logging.ERROR, logger="qspec.rpc"):
        asyncio.run(scenario())
    assert len(caplog.records) == 2  # the bug, with its traceback, once for each call; no deliberate error
    assert all(record.exc_info and record.exc_info[0] is RuntimeError for record in caplog.records)


def test_large_messages_pass(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            await server.until_serving()
            server.servicer.kernel = "x" * (16 * 2**20)
            answer = await server.stub.Describe(verifier_pb2.DescribeRequest())
            assert len(answer.kernel) == 16 * 2**20

    asyncio.run(scenario())


async def _start_and_fail(listen: str) -> InvalidInput:
    server = Running(listen)
    server.loaded.set()
    with pytest.raises(InvalidInput) as caught:
        await asyncio.wait_for(serve(
            [server.servicer.service], listen, prepare=server.prepare, on_serving=server.addresses.append,
            stop=server.stop,
        ), 5)
    return caught.value


def test_occupied_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        error = asyncio.run(_start_and_fail(f"127.0.0.1:{other.getsockname()[1]}"))
    assert [violation.field for violation in error.violations] == ["listen"]
    assert "\n" not in str(error)


def test_occupied_socket_is_left_to_its_owner(listen: str) -> None:
    async def scenario() -> None:
        async with Running(listen) as server:
            await server.until_serving()
            assert "in use" in str(await _start_and_fail(listen))
            assert await server.health() == Health.SERVING

    asyncio.run(scenario())


def test_dead_socket_is_replaced(listen: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(listen.removeprefix("unix:"))

    async def scenario() -> None:
        async with Running(listen) as server:
            await server.until_serving()

    asyncio.run(scenario())


@pytest.mark.parametrize("listen_at", [
    "nonsense", "unix:", "host:port", "host:99999", ":1", "unix:/no/such/directory/s.sock", "unix:/" + "x" * 120,
    "192.0.2.1:0",
])
def test_unusable_addresses(listen_at: str) -> None:
    error = asyncio.run(_start_and_fail(listen_at))
    assert [violation.field for violation in error.violations] == ["listen"]


def test_a_file_in_place_of_the_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("precious")
    asyncio.run(_start_and_fail(f"unix:{path}"))
    assert path.read_text() == "precious"


def test_port_zero_tells_the_port() -> None:
    async def scenario() -> str:
        server = Running("127.0.0.1:0")
        async with server:
            await server.until_serving()
            return server.addresses[0]

    assert int(asyncio.run(scenario()).rpartition(":")[2]) > 0
