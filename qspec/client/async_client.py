"""The client for asyncio: calls are awaited, streams are asynchronous iterators."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from qspec.client.completion import Completion, CompletionBuilder
from qspec.client.connection import make_connection
from qspec.client.deltas import Delta, delta_from_pb
from qspec.client.request import GenerateOptions, Message, Prompt, generate_request, tokenize_request
from qspec.client.retry import Attempts, RetryPolicy
from qspec.client.tls import Tls
from qspec.errors import InvalidInput
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncClient:
    """As ``Client``, within one event loop: made in it, used in it, closed in it."""

    def __init__(
        self, address: str, *, tls: Tls | None = None, api_key: str | None = None, client_id: str | None = None,
        retry: RetryPolicy = RetryPolicy(), insecure: bool = False,
    ) -> None:
        self._connection = connection = make_connection(
            address, tls=tls, api_key=api_key, client_id=client_id, insecure=insecure)
        self._retry = retry
        if connection.credentials is None:
            self._channel = grpc.aio.insecure_channel(connection.target, options=connection.options)
        else:
            self._channel = grpc.aio.secure_channel(
                connection.target, connection.credentials, options=connection.options)
        self._stub: Any = pb_grpc.GenerationServiceStub(self._channel)

    def generate(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Delta, None]:
        """Stream a text, or ``n`` of them. Closing the generator or cancelling its task cancels on the server.

        Leave a loop over it early inside ``contextlib.aclosing``: otherwise it is closed some time later.
        """
        return self._generate(generate_request(prompt, options), deadline_s)

    async def complete(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """One whole text; ``InvalidInput`` where ``n`` asks for more."""
        request = generate_request(prompt, options)
        if request.n > 1:
            raise InvalidInput.field("n", f"complete() gives one text, not {request.n}: use complete_all()")
        (completion,) = await self.complete_all(request, deadline_s=deadline_s)
        return completion

    async def complete_all(
        self, prompt: Prompt | pb.GenerateRequest, *, deadline_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> tuple[Completion, ...]:
        """The ``n`` whole texts."""
        request = generate_request(prompt, options)
        builder = CompletionBuilder(request.n or 1)
        async with contextlib.aclosing(self._generate(request, deadline_s)) as deltas:
            async for delta in deltas:
                builder.add(delta)
        return builder.build()

    async def tokenize(self, prompt: str | Sequence[Message], *, deadline_s: float | None = None) -> tuple[int, ...]:
        """The tokens that ``generate`` would see."""
        answer: pb.TokenizeResponse = await self._call(self._stub.Tokenize, tokenize_request(prompt), deadline_s)
        return tuple(answer.token_ids)

    async def server_info(self, *, deadline_s: float | None = None) -> pb.GetServerInfoResponse:
        """What runs there; answered while it loads, too."""
        answer: pb.GetServerInfoResponse = await self._call(
            self._stub.GetServerInfo, pb.GetServerInfoRequest(), deadline_s)
        return answer

    async def close(self) -> None:
        """Close the connection; streams that run are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _generate(self, request: pb.GenerateRequest, deadline_s: float | None) -> AsyncGenerator[Delta, None]:
        attempts = Attempts(self._retry, deadline_s)
        while True:
            call = self._stub.Generate(request, timeout=attempts.left_s(), metadata=self._connection.metadata)
            begun = False
            try:
                async for message in call:
                    begun = True
                    yield delta_from_pb(message)
                return
            except grpc.RpcError as failed:
                error = self._connection.error(failed)
                pause = None if begun else attempts.pause_s(error)
                if pause is None:
                    raise error from None
            finally:
                call.cancel()
            await asyncio.sleep(pause)

    async def _call(self, method: Callable[..., Any], request: object, deadline_s: float | None) -> Any:
        attempts = Attempts(self._retry, deadline_s)
        while True:
            try:
                return await method(request, timeout=attempts.left_s(), metadata=self._connection.metadata)
            except grpc.RpcError as failed:
                error = self._connection.error(failed)
                if (pause := attempts.pause_s(error)) is None:
                    raise error from None
            await asyncio.sleep(pause)
