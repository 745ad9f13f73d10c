"""``python -m verifier``: the verifier's server.

The order matters: the lifeline first, so that nothing can outlive its parent; then the thread environment, which the
OpenMP runtime reads when torch loads it; torch last, in the engine's own thread.
"""

from __future__ import annotations

import argparse
import time
from typing import NoReturn

from qspec.cli import add_process_arguments, add_stack_arguments, run_program, stack_config
from qspec.worker_process import WorkerProcess


def command_line() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = argparse.ArgumentParser(prog="python -m verifier", description="Owns the weights and decides on tokens.")
    add_process_arguments(parser)
    parser.add_argument("--epoch", type=int, default=time.time_ns(), help=(
        "number of the arena, other than those of earlier verifiers of the stack (default: the clock's nanoseconds)"
    ))
    add_stack_arguments(parser)
    return parser


def main() -> NoReturn:
    """Parse the command line and serve until told to stop."""
    args = command_line().parse_args()
    process = WorkerProcess.start(args, stack_config(args))

    from verifier.program import serve_verifier  # late: gRPC reads the environment that has just been set

    process.run(lambda: serve_verifier(process, epoch=args.epoch))


if __name__ == "__main__":
    run_program(main)
