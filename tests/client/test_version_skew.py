"""A newer client with an older server, and the reverse: what one side does not know is passed over, or said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import unknown_fields

from qspec.client import AsyncClient, FinishReason, InvalidInput, Unsupported
from qspec.rpc.server import RpcServer, Service
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

SERVICE = "qspec.v1.GenerationService"
UNKNOWN_FIELD = b"\xfa\x7d\x05newer"
"""Field 2015, length-delimited: one that no version has."""


@contextlib.asynccontextmanager
async def raw_server(directory: Path, **methods: grpc.RpcMethodHandler[Any, Any]) -> AsyncIterator[str]:
    """A server with only these methods, whose messages are bytes."""
    handler = grpc.method_handlers_generic_handler(SERVICE, methods)
    server = RpcServer(
        [Service(name=SERVICE, register=lambda s: s.add_generic_rpc_handlers((handler,)))], public=True)
    address = await server.start(f"unix:{directory}/s")
    try:
        yield address
    finally:
        await server.stop(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


def test_an_older_server_does_not_know_a_call(tmp_path: Path) -> None:
    async def test() -> None:
        async with raw_server(tmp_path) as address, AsyncClient(address) as client:
            for call in (client.tokenize("a"), client.complete("a"), client.server_info()):
                with pytest.raises(Unsupported) as raised:
                    await call
                assert str(raised.value) == (
                    f"the server at {address} does not know this call: it is older than this client, or no QSPEC "
                    "server (Method not found!)")
    run(test)


def test_a_newer_server_says_more_than_the_client_knows(tmp_path: Path) -> None:
    async def generate(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield pb.GenerateResponse(text="a", token_ids=[1]).SerializeToString() + UNKNOWN_FIELD
        yield pb.GenerateResponse(text="b", finish_reason=77).SerializeToString() + UNKNOWN_FIELD  # type: ignore[arg-type]

    async def info(_request: bytes, _context: object) -> bytes:
        return pb.GetServerInfoResponse(version="99", state=42).SerializeToString() + UNKNOWN_FIELD  # type: ignore[arg-type]

    async def test() -> None:
        methods = {"Generate": grpc.unary_stream_rpc_method_handler(generate),
                   "GetServerInfo": grpc.unary_unary_rpc_method_handler(info)}
        async with raw_server(tmp_path, **methods) as address, AsyncClient(address) as client:
            completion = await client.complete("x")
            assert (completion.text, completion.finish.reason) == ("ab", FinishReason.UNKNOWN)
            answer = await client.server_info()
            assert (answer.version, answer.state) == ("99", 42)
            assert len(unknown_fields.UnknownFieldSet(answer)) == 1
    run(test)


def test_an_older_server_says_less(tmp_path: Path) -> None:
    async def generate(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        yield pb.GenerateResponse(text="a", finish_reason=pb.FINISH_REASON_LENGTH).SerializeToString()

    async def test() -> None:
        methods = {"Generate": grpc.unary_stream_rpc_method_handler(generate)}
        async with raw_server(tmp_path, **methods) as address, AsyncClient(address) as client:
            completion = await client.complete("x")
            assert (completion.request_id, completion.finish.usage.completion_tokens) == ("", 0)
            assert completion.finish.speculation.acceptance_rate == 0.0
    run(test)


def test_an_older_client_asks_a_newer_server(tmp_path: Path) -> None:
    """A request with a field that the servicer does not know is served as if it were not there."""
    class Servicer(pb_grpc.GenerationServiceServicer):
        async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
            if not request.text:
                raise InvalidInput.field("text", "is empty")
            return pb.TokenizeResponse(token_ids=[len(request.text)])

    async def test() -> None:
        server = RpcServer([Service(
            name=SERVICE, register=lambda s: pb_grpc.add_GenerationServiceServicer_to_server(Servicer(), s))])
        address = await server.start(f"unix:{tmp_path}/s")
        async with grpc.aio.insecure_channel(address) as channel:
            tokenize: Any = channel.unary_unary(f"/{SERVICE}/Tokenize")
            answer = await tokenize(pb.TokenizeRequest(text="four").SerializeToString() + UNKNOWN_FIELD)
            assert list(pb.TokenizeResponse.FromString(answer).token_ids) == [4]
        await server.stop(0)
    run(test)
