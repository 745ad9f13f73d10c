"""The public service: translates messages, delegates to the engine, and gives a slot back when its client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from coordinator.engine import Engine, QueueFull
from coordinator.messages import info_message, piece_message
from coordinator.requests import encode_prompt, validate_request
from coordinator.serving import ServerState, Serving, ServingTokenizer
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class GenerationService(pb_grpc.GenerationServiceServicer):
    """``qspec.v1.GenerationService``. Until the stack is ready, requests get UNAVAILABLE and RetryInfo."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Stream one text."""
        engine, tokenizer = await self._ready(context)
        limits = self._serving.limits
        valid = await asyncio.to_thread(validate_request, request, tokenizer, limits)  # a long text takes a while
        try:
            stream = engine.submit(valid)
        except QueueFull as error:
            await _abort_for_now(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), error.retry_after_s)
        # A generator that its client left at a yield is not resumed: the callback is what frees the slot then.
        context.add_done_callback(lambda _: stream.cancel())  # type: ignore[arg-type]  # the stubs know only methods
        async with stream:
            async for piece in stream:
                yield piece_message(piece)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """What runs here; answers while loading, too."""
        return info_message(self._serving)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """The tokens that Generate would see."""
        _, tokenizer = await self._ready(context)
        tokens = await asyncio.to_thread(encode_prompt, request, tokenizer, self._serving.limits.vocab_size)
        return pb.TokenizeResponse(token_ids=tokens)

    async def _ready(self, context: Context) -> tuple[Engine, ServingTokenizer]:
        serving = self._serving
        if serving.state is ServerState.DRAINING:
            await _abort_for_now(context, grpc.StatusCode.UNAVAILABLE, "the server is shutting down", 5.0)
        if serving.state is ServerState.LOADING or serving.engine is None or serving.tokenizer is None:
            text = f"the server is not ready yet ({serving.stage}); GetServerInfo tells when it is"
            await _abort_for_now(context, grpc.StatusCode.UNAVAILABLE, text, 1.0)
        return serving.engine, serving.tokenizer


async def _abort_for_now(context: Context, code: grpc.StatusCode, text: str, retry_after_s: float) -> NoReturn:
    """End the call with a status that says when to try again (``google.rpc.RetryInfo``)."""
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(retry_after_s * 1e9))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = rpc_status.to_status(status_pb2.Status(code=code.value[0], message=text, details=[detail]))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returns by raising")
