"""``python -m drafter``: the drafter's server. The order of things is that of ``verifier.__main__``."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qspec.cli import add_process_arguments, add_stack_arguments, run_program, stack_config
from qspec.worker_process import WorkerProcess


def command_line() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = argparse.ArgumentParser(prog="python -m drafter", description="Proposes tokens for the verifier.")
    add_process_arguments(parser)
    add_stack_arguments(parser)
    return parser


def main() -> NoReturn:
    """Parse the command line and serve until told to stop."""
    args = command_line().parse_args()
    process = WorkerProcess.start(args, stack_config(args))

    from drafter.program import serve_drafter  # late: gRPC reads the environment that has just been set

    process.run(lambda: serve_drafter(process))


if __name__ == "__main__":
    run_program(main)
