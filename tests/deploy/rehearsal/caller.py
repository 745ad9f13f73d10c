"""A client as a Service's users are: a connection of its own for each call."""

from __future__ import annotations

import grpc

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc


async def text_of(address: str, prompt: str) -> str:
    """A seeded text of 24 tokens; raises ``grpc.RpcError``."""
    text, _ = await drafted_text(address, prompt)
    return text


async def drafted_text(address: str, prompt: str, draft_length: int | None = None) -> tuple[str, int]:
    """The text, and how many tokens were drafted for it; raises ``grpc.RpcError``."""
    request = pb.GenerateRequest(text=prompt, max_tokens=24, temperature=1.0, seed=7, draft_length=draft_length)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.GenerationServiceStub(channel)
        answers = [answer async for answer in stub.Generate(request, timeout=60)]
    return "".join(answer.text for answer in answers), answers[-1].speculation.drafted
