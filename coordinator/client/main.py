"""One run of the client, from the command line to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from coordinator.client.generate import UNTIL_THERE_IS_ROOM, generate_all, wait_until_serving
from coordinator.client.options import ClientOptions, parse_options
from coordinator.client.output import OrderedOutput, Output, StreamedOutput
from coordinator.private_stack import PrivateStack
from qspec.cli import EXIT_ERROR
from qspec.errors import InvalidInput, QspecError, WorkerLost
from qspec.memory.budget import budget_table
from qspec.progress_display import ProgressDisplay
from qspec.rpc.addresses import parse_address
from qspec.rpc.options import quieten_grpc
from qspec.v1 import generation_pb2 as pb

EXIT_FAILURE = 1
"""Exit code of what is not the user's doing: nobody listens, a server that fails."""
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run() -> int:
    """Parse the command line, generate, print; returns the exit code."""
    quieten_grpc()
    try:
        options = parse_options(sys.argv[1:])
        return asyncio.run(_run_until_signal(options))
    except QspecError as error:
        return _report(error)


def _report(error: QspecError) -> int:
    sys.stderr.write(f"error: {error}\n")
    return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE


async def _run_until_signal(options: ClientOptions) -> int:
    """Run; a signal cancels what runs, lets it clean up, and decides the exit code."""
    event_loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(_run(options))
    received: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        received.append(number)
        running.cancel()

    for number in _ENDING_SIGNALS:
        event_loop.add_signal_handler(number, end, number)
    try:
        return await asyncio.wait_for(running, options.timeout_s)
    except asyncio.CancelledError:
        if not received:
            raise
        sys.stderr.write("interrupted\n" if received[0] is signal.SIGINT else f"ended by {received[0].name}\n")
        return 128 + received[0]
    except asyncio.TimeoutError:
        raise QspecError(f"--timeout: not finished within {options.timeout_s:g} s") from None


async def _run(options: ClientOptions) -> int:
    async with contextlib.AsyncExitStack() as cleanup:
        display = ProgressDisplay()
        cleanup.callback(display.close)
        stack: PrivateStack | None = None
        if options.address is None:
            stack = PrivateStack(options.stack, display.show)
            address = await cleanup.enter_async_context(stack)
        else:
            address = parse_address(options.address, "--address")
        client = await cleanup.enter_async_context(options.server.client(address, retry=UNTIL_THERE_IS_ROOM))
        try:
            info = await wait_until_serving(client, address, display.show)
            display.close()
            if stack is not None:
                sys.stderr.write(f"{_description(info)}\n")
            output = _output(options)
            cleanup.callback(output.close)
            error = await generate_all(client, options, output, at_once=max(1, info.max_slots // options.choices))
        except WorkerLost:
            if stack is not None and (failure := stack.failure()) is not None:
                raise failure from None
            raise
    if error is None:
        return 0
    return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE


def _description(info: pb.GetServerInfoResponse) -> str:
    """What the private stack runs, and its memory budget."""
    drafter = f"drafter {info.draft_method}" if info.draft_method else "no drafter"
    auto = f"auto: {info.auto_reason}\n" if info.auto_reason else ""
    methods = f"{info.model}: verifier {info.verify_method}, {drafter}"
    return f"{auto}{methods}; memory of the stack:\n{budget_table(info.memory)}"


def _output(options: ClientOptions) -> Output:
    texts = len(options.prompts) * options.choices
    if texts == 1 and not options.as_json:
        return StreamedOutput()
    return OrderedOutput(texts, as_json=options.as_json)
