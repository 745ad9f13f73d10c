"""``make bench-serving``: the server under load, as its clients see it, in sections that can be run apart.

``load``     Poisson arrivals at shares of the saturation: auto, a fixed draft length and none (``load_curve``).
``streams``  many streams at once: all end, memory bounded, none starves (``many_streams``).
``feeding``  what streaming costs the coordinator, and how many streams it can feed, on simulated workers (``feeding``).

Standard output gets a report and, as its last line, one JSON object. With ``--log`` the load curve is kept block by
block, and a run that was stopped, or whose ``--budget`` was used up, goes on where it was. The exit code is 1 when
something broke or texts differ between configurations, and 2 for options that cannot be used; a missed target alone is
a result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import grpc

from benchmarks.environment import describe_environment
from benchmarks.report import Verdict
from benchmarks.serving.feeding import measure_feeding
from benchmarks.serving.feeding_report import feeding_verdicts, render_feeding
from benchmarks.serving.load_section import measure_load_section
from benchmarks.serving.many_streams import measure_many_streams
from benchmarks.serving.options import check_options, parser, stack_of
from benchmarks.serving.streams_report import render_streams, stream_verdicts
from benchmarks.stack_run import Tell, stack_address, stack_tokens
from coordinator.client.prompts import read_prompts
from qspec.cli import EXIT_ERROR, run_program
from qspec.client import AsyncClient
from qspec.client.retry import NEVER
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError
from qspec.rpc.channel import channel_options
from qspec.rpc.options import quieten_grpc

EXIT_FAILURE = 1


def main() -> int:
    """Measure and report."""
    quieten_grpc()
    args = parser().parse_args()
    try:
        check_options(args)
        result, verdicts, failed = asyncio.run(measure(args))
    except QspecError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE
    for verdict in verdicts:
        state = {True: "met", False: "MISSED", None: "not measured"}[verdict.met]
        print(f"{state}: {verdict.target}: {verdict.measured}")
    line = json.dumps({**result, "verdicts": [asdict(verdict) for verdict in verdicts]}, allow_nan=False)
    if args.output is not None:
        args.output.write_text(line + "\n", "utf-8")
    print(line)
    return EXIT_FAILURE if failed else 0


async def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[Verdict], bool]:
    """Run the sections asked for and print their reports; what was found, the targets, and whether texts differ."""
    deadline = time.monotonic() + args.budget
    result: dict[str, Any] = {"benchmark": "serving", "environment": describe_environment()}
    verdicts: list[Verdict] = []
    print(_heading(result["environment"]))
    texts = read_prompts([], [args.prompts])[: args.num_prompts]
    differing = 0
    if "load" in args.sections:
        async with _stack(stack_of(args), _tell) as (client, channel):
            section = await measure_load_section(client, channel, args, texts, deadline=deadline, tell=_tell)
        result["load"] = section.figures
        verdicts += section.verdicts
        differing += section.differing
        print(section.text)
    if "streams" in args.sections:
        async with _stack(stack_of(args, slots=args.streams), _tell) as (client, channel):
            prompts = [await stack_tokens(client, text, args.stream_prompt_tokens) for text in texts]
            streams = await measure_many_streams(
                channel, prompts, streams=args.streams, max_tokens=args.stream_tokens, waves=args.waves, tell=_tell)
        result["streams"] = asdict(streams)
        verdicts += stream_verdicts(streams)
        print(render_streams(streams))
    if "feeding" in args.sections:
        feeding = await measure_feeding(args, _tell)
        result["feeding"] = asdict(feeding)
        verdicts += feeding_verdicts(feeding)
        print(render_feeding(feeding))
    return result, verdicts, bool(differing)


@contextlib.asynccontextmanager
async def _stack(config: StackConfig, tell: Tell) -> AsyncIterator[tuple[AsyncClient, grpc.aio.Channel]]:
    """A private stack that serves: a client that asks it about itself, and a channel that is loaded."""
    async with (
        stack_address(config, tell) as address,
        AsyncClient(address, retry=NEVER) as client,
        grpc.aio.insecure_channel(address, options=channel_options(address)) as channel,
    ):
        yield client, channel


def _heading(environment: dict[str, Any]) -> str:
    libraries = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "grpcio", "protobuf"))
    modified = " (modified)" if environment["modified"] else ""
    return (
        f"{environment['date']}  {environment['cpu']}, {environment['cores_usable']} cores usable, load "
        f"{environment['load_average'][0]:.2f} at the start\n{libraries}; commit {environment['commit']}{modified}")


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    run_program(main)
