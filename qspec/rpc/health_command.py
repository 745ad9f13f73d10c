"""``python -m qspec health``: a probe for what has no port (the sockets of workers) or no gRPC probe (Docker)."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from qspec.rpc.options import quieten_grpc

EXIT_NOT_SERVING = 1


def add_health_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand; its ``run`` takes the parsed arguments and returns the exit code."""
    parser = commands.add_parser(
        "health", help="whether a server is SERVING; the exit code tells",
        description="Asks grpc.health.v1 at ADDRESS. Exit code 0: SERVING; 1: not (yet), or nobody answers.",
    )
    parser.add_argument("address", metavar="ADDRESS", help="unix:PATH or HOST:PORT")
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS", help=(
        "time for an answer (default: %(default)s)"))
    parser.set_defaults(run=run_health)


def run_health(args: argparse.Namespace) -> int:
    """Ask; returns the exit code. Raises ``InvalidInput`` for what is no address."""
    quieten_grpc()
    from qspec.rpc.health import why_not_serving  # late: gRPC reads the environment that was just set

    reason = why_not_serving(args.address, timeout_s=args.timeout)
    if reason is None:
        return 0
    sys.stderr.write(f"not serving: {args.address}: {reason}\n")
    return EXIT_NOT_SERVING
