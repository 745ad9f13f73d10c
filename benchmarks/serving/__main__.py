"""``make bench-serving``: the server under load, as its clients see it, in sections that can be run apart.

``load``     Poisson arrivals at shares of the saturation: auto, a fixed draft length and none (``load_curve``).
``streams``  many streams at once, over few slots and many: all end, memory bounded, none starves (``many_streams``).
``batches``  so many streams at once: auto against no drafts at each batch size, and the coordinator's share of a round
             (``batch_sizes``).
``prompts``  a long prompt comes while texts go on: how long these stand still, with and without the bound on what
             prompts may add to a round (``long_prompts``).
``feeding``  what streaming costs the coordinator, and how many streams it can feed, on simulated workers (``feeding``).

Standard output gets a report and, as its last line, one JSON object. With ``--log`` what was measured is kept block by
block, and a run that was stopped, or whose ``--budget`` was used up, goes on where it was. The exit code is 1 when
something broke or texts differ between configurations, and 2 for options that cannot be used; a missed target alone is
a result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from benchmarks.environment import describe_environment
from benchmarks.report import Verdict
from benchmarks.serving.options import check_options, parser
from benchmarks.serving.sections import MEASURES
from coordinator.client.prompts import read_prompts
from qspec.cli import EXIT_ERROR, run_program
from qspec.errors import InvalidInput, QspecError
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
    for name, measure_section in MEASURES.items():
        if name not in args.sections:
            continue
        section = await measure_section(args, texts, deadline, _tell)
        result[name] = section.figures
        verdicts += section.verdicts
        differing += section.differing
        print(section.text, flush=True)
    return result, verdicts, bool(differing)


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
