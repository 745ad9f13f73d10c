"""The verifier's gRPC service: decodes, asks the engine in its own thread, encodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from qspec.interfaces import Verifier, VerifierDescription
from qspec.overlap import AwaitingEngine
from qspec.rpc.batch_handler import BatchStreams
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import Service
from qspec.rpc.time_left import after_waiting
from qspec.rpc.verifier_codec import description_to_pb, verify_answer_to_pb, verify_batch_from_pb
from qspec.v1 import verifier_pb2, verifier_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]
SERVICE_NAME = "qspec.v1.VerifierService"


class VerifierServicer(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves one engine. ``arena_reference`` is where the arena's descriptor is handed out: "unix:PATH"."""

    def __init__(self, engine: EngineThread[Verifier], arena_reference: str) -> None:
        self._engine = engine
        self._arena_reference = arena_reference
        self.streams = BatchStreams()

    @property
    def service(self) -> Service:
        """What ``qspec.rpc.server.serve`` takes."""
        def register(server: grpc.aio.Server) -> None:
            verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server)

        return Service(name=SERVICE_NAME, register=register)

    async def Describe(
        self, request: verifier_pb2.DescribeRequest, context: _Context
    ) -> verifier_pb2.DescribeResponse:
        """See verifier.proto."""
        return description_to_pb(self._public(await self._engine.call(lambda verifier: verifier.describe())))

    async def Verify(
        self, request_iterator: AsyncIterator[verifier_pb2.VerifyRequest], context: _Context
    ) -> AsyncIterator[verifier_pb2.VerifyResponse]:
        """See verifier.proto."""
        async for response in self.streams.serve(request_iterator, self._answer):
            yield response

    async def GiveUpDrafts(
        self, request: verifier_pb2.GiveUpDraftsRequest, context: _Context
    ) -> verifier_pb2.GiveUpDraftsResponse:
        """See verifier.proto."""
        self._give_up(request.epoch, request.round)
        return verifier_pb2.GiveUpDraftsResponse()

    async def _answer(self, request: verifier_pb2.VerifyRequest) -> verifier_pb2.VerifyResponse:
        received = time.monotonic()
        batch = verify_batch_from_pb(request)  # here and below, so that the engine has its next batch at once
        try:
            answer = await self._engine.call(lambda verifier: verifier.verify(after_waiting(batch, received)))
        except asyncio.CancelledError:  # whoever asked is gone, and cannot give up drafts any more
            self._give_up(request.epoch, request.round)
            raise
        return verify_answer_to_pb(answer)

    def _give_up(self, epoch: int, round_number: int) -> None:
        engine = self._engine.engine
        if isinstance(engine, AwaitingEngine):
            engine.give_up_drafts(epoch, round_number)

    def _public(self, about: VerifierDescription) -> VerifierDescription:
        """The description for other processes, to which a descriptor's number means nothing."""
        return replace(about, arena=replace(about.arena, reference=self._arena_reference))
