"""``python -m coordinator``: the public server, and the supervisor of its workers.

With ``--verifier`` or ``--drafter`` that worker is somebody else's process (a container of the same pod, say); it is
waited for and connected to, never started or stopped. There may be several pairs of workers: ``--pairs`` of the
server's own, ``--verifier`` and ``--drafter`` once for each pair, or a file that may change meanwhile
(``--pairs-file``).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
from pathlib import Path

from coordinator.pair_source import PairSource, given_pairs, read_pairs
from coordinator.public_port import add_port_arguments, public_port
from coordinator.stream import MAX_BUFFERED_TOKENS
from qspec.cli import EXIT_ERROR, add_process_arguments, add_stack_arguments, run_program, stack_config
from qspec.errors import FieldViolation, InvalidInput, QspecError
from qspec.log_format import LogFormat, configure_logging, log_options
from qspec.rpc.options import quieten_grpc
from qspec.status import Status
from qspec.threads import share_interpreter

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
    workers.add_argument("--pairs", type=int, metavar="N", help=(
        "pairs of a verifier and a drafter to start; on GPUs, each has one of its own (default: 1)"))
    workers.add_argument("--verifier-address", "--verifier", action="append", default=[], metavar="ADDRESS", help=(
        "use this verifier instead of starting one; once for each pair"))
    workers.add_argument("--drafter-address", "--drafter", action="append", default=[], metavar="ADDRESS", help=(
        "use this drafter instead of starting one; once for each pair, in the same order"))
    workers.add_argument("--pairs-file", type=Path, metavar="FILE", help=(
        'a pair in each line, "own" or "VERIFIER [DRAFTER]"; read again when it changes: pairs are added, and go when '
        "their requests have ended or moved"))
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
    watching = parser.add_argument_group("metrics and traces")
    watching.add_argument("--metrics-listen", metavar="HOST:PORT", help=(
        "serve Prometheus metrics there, at /metrics (default: nowhere; docs/metrics.md)"
    ))
    watching.add_argument("--trace-endpoint", metavar="URL", help=(
        "send OpenTelemetry traces to this collector, http://HOST:PORT or https://HOST:PORT, by gRPC (default: what "
        "OTEL_EXPORTER_OTLP_ENDPOINT says, or nowhere)"
    ))
    add_stack_arguments(parser)
    return parser


def main() -> int:
    """Parse the command line and serve until told to stop."""
    args = command_line().parse_args()
    log_json = LogFormat(args.log_format) is LogFormat.JSON
    status = Status(args.status_fd, as_log=log_json)
    configure_logging(args)
    quieten_grpc()
    share_interpreter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come one by one, and the cores are the workers'

    from coordinator.program import Options, serve_coordinator  # late: gRPC reads the environment that was just set

    try:
        _check_flow(args)
        asyncio.run(serve_coordinator(Options(
            config=stack_config(args),
            port=public_port(args),
            runtime_dir=args.runtime_dir,
            lifeline_fd=args.lifeline_fd,
            pairs=_pairs(args),
            pairs_file=args.pairs_file,
            max_waiting=args.max_waiting,
            max_buffered_tokens=args.max_buffered_tokens,
            grace_s=args.grace,
            announce=args.status_fd is None,
            metrics_listen=args.metrics_listen,
            trace_endpoint=args.trace_endpoint,
            log_json=log_json,
            worker_options=tuple(log_options(args)),
            wait_for_model_s=args.wait_for_model,
        ), status))
    except QspecError as error:
        status.error(error)
        return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE
    return 0


def _pairs(args: argparse.Namespace) -> tuple[PairSource, ...]:
    if args.pairs_file is None:
        return given_pairs(args.pairs, args.verifier_address, args.drafter_address)
    if args.pairs is not None or args.verifier_address or args.drafter_address:
        raise InvalidInput.field("pairs_file", "names all pairs; leave out --pairs, --verifier and --drafter")
    return read_pairs(args.pairs_file)


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
