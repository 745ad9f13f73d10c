"""``python -m qspec``: tools around the core."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qspec.cli import run_program
from qspec.evaluation.sensitivity_command import add_sensitivity_command
from qspec.quant.methods import Backend, Role
from qspec.quant.methods_table import methods_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qspec", description="Tools around the core.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    methods = commands.add_parser("methods", help="the quantisation methods, and what this machine has for each")
    methods.set_defaults(run=_methods)
    add_sensitivity_command(commands)
    args = parser.parse_args(arguments)
    code: int = args.run(args)
    return code


def _methods(_args: argparse.Namespace) -> int:
    from qspec.kernels.int8_linear import has_kernel  # imports torch

    print(methods_table(Backend.CPU, () if has_kernel() else (("w8a8", Role.DRAFT),)))
    print(
        "\nreal: a kernel that gains; emulated: right numbers, no gain. A name alone means its first variant, for a\n"
        "drafter the first one whose weights the verifier holds, for the verifier of a checkpoint that came quantised\n"
        "the one with the checkpoint's own codes. same bits: text with speculation equals that without."
    )
    return 0


if __name__ == "__main__":
    run_program(main)
