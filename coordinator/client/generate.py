"""Runs prompts against a server: several at once, each to its answer or its error."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from coordinator.client.answer import Answer
from coordinator.client.generation_options import option_of
from coordinator.client.options import ClientOptions
from coordinator.client.output import Output
from qspec.client import AsyncClient, RetryPolicy
from qspec.client.completion import CompletionBuilder
from qspec.errors import DeadlineExceeded, InvalidInput, QspecError, QueueFull, TlsFailed, Unavailable, WorkerLost
from qspec.v1 import generation_pb2 as pb

UNTIL_THERE_IS_ROOM = RetryPolicy(attempts=None, longest_wait_s=math.inf, errors=(QueueFull,))
"""A full server is asked again whenever it says; one that goes away ends the run."""
INFO_TIMEOUT_S = 10.0
LOOK_EVERY_S = 0.5


async def wait_until_serving(
    client: AsyncClient, address: str, show: Callable[[str, float], None]
) -> pb.GetServerInfoResponse:
    """What runs at ``address``, once it is loaded; raises ``WorkerLost`` when nobody answers there."""
    while True:
        try:
            info = await client.server_info(deadline_s=INFO_TIMEOUT_S)
        except TlsFailed:
            raise
        except (WorkerLost, DeadlineExceeded) as error:
            raise WorkerLost(
                f"--address: nobody answers at {address}; start a server there (python -m coordinator --listen "
                f"{address}), or leave --address out") from error
        if info.state == pb.SERVER_STATE_SERVING:
            return info
        if info.state == pb.SERVER_STATE_DRAINING:
            raise WorkerLost(f"--address: the server at {address} is shutting down")
        show(f"waiting for the server at {address} to load", 0.0)
        await asyncio.sleep(LOOK_EVERY_S)


async def generate_all(
    client: AsyncClient, options: ClientOptions, output: Output, *, at_once: int
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
                for answer in await _generate(client, options, first, prompt, output):
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
    client: AsyncClient, options: ClientOptions, first: int, prompt: str, output: Output
) -> list[Answer]:
    """All choices of one prompt."""
    builder = CompletionBuilder(options.choices)
    try:
        async with contextlib.aclosing(client.generate(options.request_for(prompt))) as deltas:
            async for delta in deltas:
                builder.add(delta)
                output.piece(first + delta.choice, delta.text)
    except InvalidInput as error:
        raise _named_by_option(error) from error
    return [Answer(prompt, completion) for completion in builder.build()]


_PROMPT_FIELDS = ("text", "chat", "prompt", "chat.messages[0].content")


def _named_by_option(error: InvalidInput) -> InvalidInput:
    """The same error, with the fields of the request named as the options that they came from."""
    return InvalidInput(*(
        type(violation)("--prompt" if violation.field in _PROMPT_FIELDS else option_of(violation.field),
                        violation.description)
        for violation in error.violations
    ))
