"""``python -m coordinator``: the public server, and the supervisor of its two workers.

With ``--verifier-address`` or ``--drafter-address`` that worker is somebody else's process (a container of the same
pod, say); it is waited for and connected to, never started or stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math

from coordinator.public_port import add_port_arguments, public_port
from coordinator.stream import MAX_BUFFERED_TOKENS
from qspec.cli import EXIT_ERROR, add_process_arguments, add_stack_arguments, run_program, stack_config
from qspec.errors import FieldViolation, InvalidInput, QspecError
from qspec.rpc.options import quieten_grpc
from qspec.status import Status

DEFAULT_LISTEN = "127.0.0.1:50051"
DEFAULT_GRACE_S = 25.0
"""Kubernetes kills a container 30 seconds after SIGTERM."""
EXIT_FAILURE = 1
"""Exit code when the server could not go on for another reason than what it was given."""


def command_line() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = argparse.ArgumentParser(prog="python -m coordinator", description="Serves text, and runs its two workers.")
    add_process_arguments(parser, listen=DEFAULT_LISTEN)
    add_port_arguments(parser)
    workers = parser.add_argument_group("workers")
    workers.add_argument("--verifier-address", metavar="ADDRESS", help="use this verifier instead of starting one")
    workers.add_argument("--drafter-address", metavar="ADDRESS", help="use this drafter instead of starting one")
    flow = parser.add_argument_group("requests")
    flow.add_argument("--max-waiting", type=int, default=256, metavar="INT", help=(
        "requests that may wait for a slot; more get RESOURCE_EXHAUSTED (default: %(default)s)"
    ))
    flow.add_argument("--max-buffered-tokens", type=int, default=MAX_BUFFERED_TOKENS, metavar="INT", help=(
        "tokens that are kept for a client that does not take them; one further behind gets RESOURCE_EXHAUSTED "
        "(default: %(default)s)"
    ))
    flow.add_argument("--grace", type=float, default=DEFAULT_GRACE_S, metavar="SECONDS", help=(
        "time that requests get to end after SIGTERM; the rest get UNAVAILABLE, as all do at a second signal "
        "(default: %(default)s)"
    ))
    add_stack_arguments(parser)
    return parser


def main() -> int:
    """Parse the command line and serve until told to stop."""
    args = command_line().parse_args()
    status = Status(args.status_fd)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    quieten_grpc()

    from coordinator.program import Options, serve_coordinator  # late: gRPC reads the environment that was just set

    try:
        _check_flow(args)
        asyncio.run(serve_coordinator(Options(
            config=stack_config(args),
            port=public_port(args),
            runtime_dir=args.runtime_dir,
            lifeline_fd=args.lifeline_fd,
            verifier_address=args.verifier_address,
            drafter_address=args.drafter_address,
            max_waiting=args.max_waiting,
            max_buffered_tokens=args.max_buffered_tokens,
            grace_s=args.grace,
            announce=args.status_fd is None,
        ), status))
    except QspecError as error:
        status.error(error)
        return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE
    return 0


def _check_flow(args: argparse.Namespace) -> None:
    violations: list[FieldViolation] = []
    if args.max_waiting < 0:
        violations.append(FieldViolation("max_waiting", f"must be at least 0, got {args.max_waiting}"))
    if args.max_buffered_tokens < 1:
        violations.append(FieldViolation("max_buffered_tokens", f"must be at least 1, got {args.max_buffered_tokens}"))
    if not 0 <= args.grace < math.inf:
        violations.append(FieldViolation("grace", f"must be a number of seconds from 0 on, got {args.grace:g}"))
    if violations:
        raise InvalidInput(*violations)


if __name__ == "__main__":
    run_program(main)
