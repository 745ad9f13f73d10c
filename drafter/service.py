"""The drafter's gRPC service: decodes, asks the engine in its own thread, encodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from qspec.interfaces import Drafter
from qspec.overlap import FollowingDrafter
from qspec.rpc.batch_handler import BatchStreams
from qspec.rpc.drafter_codec import (
    attach_request_from_pb,
    attach_response_to_pb,
    draft_answer_to_pb,
    draft_batch_from_pb,
)
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import Service
from qspec.rpc.time_left import after_waiting
from qspec.v1 import drafter_pb2, drafter_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]
SERVICE_NAME = "qspec.v1.DrafterService"


class DrafterServicer(drafter_pb2_grpc.DrafterServiceServicer):
    """Serves one engine."""

    def __init__(self, engine: EngineThread[Drafter]) -> None:
        self._engine = engine
        self.streams = BatchStreams()

    @property
    def service(self) -> Service:
        """What ``qspec.rpc.server.serve`` takes."""
        def register(server: grpc.aio.Server) -> None:
            drafter_pb2_grpc.add_DrafterServiceServicer_to_server(self, server)

        return Service(name=SERVICE_NAME, register=register)

    async def Attach(self, request: drafter_pb2.AttachRequest, context: _Context) -> drafter_pb2.AttachResponse:
        """See drafter.proto."""
        verifier = attach_request_from_pb(request)
        return attach_response_to_pb(await self._engine.call(lambda drafter: drafter.attach(verifier)))

    async def Detach(self, request: drafter_pb2.DetachRequest, context: _Context) -> drafter_pb2.DetachResponse:
        """See drafter.proto."""
        await self._engine.call(lambda drafter: drafter.detach(request.epoch))
        return drafter_pb2.DetachResponse()

    async def Draft(
        self, request_iterator: AsyncIterator[drafter_pb2.DraftRequest], context: _Context
    ) -> AsyncIterator[drafter_pb2.DraftResponse]:
        """See drafter.proto."""
        async for response in self.streams.serve(request_iterator, self._answer):
            yield response

    async def _answer(self, request: drafter_pb2.DraftRequest) -> drafter_pb2.DraftResponse:
        received = time.monotonic()
        batch = draft_batch_from_pb(request)  # here and below, so that the engine has its next batch at once
        try:
            answer = await self._engine.call(lambda drafter: drafter.draft(after_waiting(batch, received)))
        except asyncio.CancelledError:  # whoever asked is gone, and the verifier's decisions may never come
            engine = self._engine.engine
            if isinstance(engine, FollowingDrafter):
                engine.give_up_round(request.epoch, request.round)
            raise
        return draft_answer_to_pb(answer)
