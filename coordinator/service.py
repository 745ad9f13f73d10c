"""The public service: translates messages, delegates to the router, and gives a slot back when its client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc

from coordinator.callers import client_of
from coordinator.choices import Choices
from coordinator.constraint_fields import ConstraintChecker
from coordinator.engine import RETRY_ELSEWHERE_S
from coordinator.messages import info_message, piece_messages
from coordinator.prompt_fields import encode_prompt
from coordinator.requests import validate_request
from coordinator.router import Router
from coordinator.sampling_fields import RANGES
from coordinator.serving import ServerState, Serving, ServingTokenizer
from coordinator.stream import Stream
from coordinator.tracing.tracer import CallTrace
from qspec.errors import Unavailable
from qspec.rpc.api_keys import ApiKeys
from qspec.rpc.watched_files import WatchedFiles
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]
RETRY_LOADING_S = 1.0
"""Seconds after which to ask again at a server that is loading."""


class GenerationService(pb_grpc.GenerationServiceServicer):
    """``qspec.v1.GenerationService``. Until the stack is ready, requests get UNAVAILABLE and RetryInfo."""

    def __init__(self, serving: Serving, keys: WatchedFiles[ApiKeys] | None = None) -> None:
        self._serving, self._keys = serving, keys

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        """Stream one text."""
        telemetry = self._serving.telemetry
        trace = telemetry.tracer.call(context.invocation_metadata() or ())
        with telemetry.admitting(request.request_id, trace):
            stream = await self._submit(request, context, trace)
        # A generator that its client left at a yield is not resumed: the callback is what frees the slot then.
        context.add_done_callback(lambda _: stream.cancel())  # type: ignore[arg-type]  # the stubs know only methods
        context.add_done_callback(lambda _: trace.close())  # type: ignore[arg-type]
        request_id = stream.request_id
        async with stream:
            async for piece in stream:
                for message in piece_messages(piece, request_id):
                    yield message
                request_id = ""

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """What runs here; answers while loading, too."""
        return info_message(self._serving)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """The tokens that Generate would see."""
        router, tokenizer, _ = self._ready()
        with router.admission.looking():
            tokens = await asyncio.to_thread(encode_prompt, request, tokenizer, self._serving.limits)
        return pb.TokenizeResponse(token_ids=tokens)

    async def _submit(self, request: pb.GenerateRequest, context: Context, trace: CallTrace) -> Stream | Choices:
        """The request, checked and queued; its time runs from here on."""
        clock = asyncio.get_running_loop().time
        arrived, left = clock(), cast("float | None", context.time_remaining())  # the stubs do not know of None
        deadlines = [] if left is None else [arrived + left]
        metadata = context.invocation_metadata() or ()
        key_name = None if self._keys is None else self._keys.current.name_of(metadata)
        client = client_of(metadata, context.peer(), key_name)
        router, tokenizer, constraints = self._ready()
        choices = request.n if request.HasField("n") else 1
        if RANGES["n"].problem(choices) is None:  # otherwise it is refused for that, and not for want of room
            router.admission.check(client, request.request_id if request.HasField("request_id") else None, choices)
        with router.admission.looking():  # a long text takes a while, as a constraint does
            valid = await asyncio.to_thread(validate_request, request, tokenizer, self._serving.limits, constraints)
        if valid.timeout_s is not None:
            deadlines.append(arrived + valid.timeout_s)
        self._ready()  # a server that was told to stop meanwhile lets nobody in
        return router.submit(valid, client=client, deadline=min(deadlines, default=None), trace=trace)

    def _ready(self) -> tuple[Router, ServingTokenizer, ConstraintChecker]:
        serving = self._serving
        if serving.state is ServerState.DRAINING:
            raise Unavailable("the server is shutting down", RETRY_ELSEWHERE_S)
        router, tokenizer, constraints = serving.router, serving.tokenizer, serving.constraints
        if serving.state is ServerState.LOADING or router is None or tokenizer is None or constraints is None:
            text = f"the server is not ready yet ({serving.stage}); GetServerInfo tells when it is"
            raise Unavailable(text, RETRY_LOADING_S)
        return router, tokenizer, constraints
