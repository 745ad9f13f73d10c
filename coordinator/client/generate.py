"""Runs prompts against a server: several at once, each to its answer or its error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from coordinator.client.answer import Answer
from coordinator.client.generation_options import option_of
from coordinator.client.options import ClientOptions
from coordinator.client.output import Output
from qspec.errors import InvalidInput, QspecError, QueueFull, Unavailable, WorkerLost
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

INFO_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.5


async def wait_until_serving(
    stub: pb_grpc.GenerationServiceStub, address: str, show: Callable[[str, float], None]
) -> pb.GetServerInfoResponse:
    """What runs at ``address``, once it is loaded; raises ``WorkerLost`` when nobody answers there."""
    while True:
        try:
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=INFO_TIMEOUT_S)
        except grpc.RpcError as error:
            text = f"nobody answers at {address} ({error.code().name})"
            raise WorkerLost(
                f"--address: {text}; start a server there (python -m coordinator --listen {address}), or leave "
                "--address out") from error
        if info.state == pb.SERVER_STATE_SERVING:
            return info
        if info.state == pb.SERVER_STATE_DRAINING:
            raise WorkerLost(f"--address: the server at {address} is shutting down")
        show(f"waiting for the server at {address} to load", 0.0)
        await asyncio.sleep(LOOK_EVERY_S)


async def generate_all(
    stub: pb_grpc.GenerationServiceStub, options: ClientOptions, output: Output, *, at_once: int
) -> QspecError | None:
    """Answer every prompt, ``at_once`` at a time, telling ``output``. Returns the first error; others still ran.

    A server that is gone, or about to go, ends the run: ``WorkerLost`` or ``Unavailable`` is raised.
    """
    room = asyncio.Semaphore(at_once)
    errors: list[QspecError] = []

    async def run(index: int, prompt: str) -> None:
        async with room:
            first = index * options.choices  # outputs are counted by texts
            try:
                answers = await _generate(stub, options.request_for(prompt), first, prompt, output)
                for answer in answers:
                    output.answer(first + answer.choice, answer)
            except (WorkerLost, Unavailable):
                raise
            except QspecError as error:
                errors.append(error)
                for choice in range(options.choices):
                    output.failure(first + choice, prompt, str(error))

    tasks = [asyncio.ensure_future(run(index, prompt)) for index, prompt in enumerate(options.prompts)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return errors[0] if errors else None


async def _generate(
    stub: pb_grpc.GenerationServiceStub, request: pb.GenerateRequest, first: int, prompt: str, output: Output
) -> list[Answer]:
    """All choices of one request; a full server is asked again when it said that it may have room."""
    while True:
        answers = [Answer(prompt, choice) for choice in range(request.n or 1)]
        try:
            async for piece in stub.Generate(request):
                answers[piece.choice].add(piece)
                output.piece(first + piece.choice, piece.text)
        except grpc.RpcError as failed:
            error = from_rpc_error(failed, "the server")
            if isinstance(error, QueueFull) and error.retry_after_s is not None and not any(
                each.token_ids for each in answers
            ):
                await asyncio.sleep(error.retry_after_s)
                continue
            raise _named_by_option(error) from failed
        if not all(each.ended for each in answers):
            raise QspecError("the server ended the text without a reason")
        return answers


_PROMPT_FIELDS = ("text", "chat", "prompt", "chat.messages[0].content")


def _named_by_option(error: QspecError) -> QspecError:
    """The same error, with the fields of the request named as the options that they came from."""
    if not isinstance(error, InvalidInput):
        return error
    return InvalidInput(*(
        type(violation)("--prompt" if violation.field in _PROMPT_FIELDS else option_of(violation.field),
                        violation.description)
        for violation in error.violations
    ))
