"""``python -m qspec``: tools around the core."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qspec.calibration.quantize_command import add_quantize_command
from qspec.cli import run_program
from qspec.evaluation.sensitivity_command import add_sensitivity_command
from qspec.quant.methods import METHODS, Backend, Role
from qspec.quant.methods_table import methods_table
from qspec.quant.weight_formats import WEIGHT_FORMATS
from qspec.rpc.hash_key_command import add_hash_key_command
from qspec.rpc.health_command import add_health_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m qspec", description="Tools around the core.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    methods = commands.add_parser("methods", help="the quantisation methods, and what this machine has for each")
    methods.set_defaults(run=_methods)
    add_quantize_command(commands)
    add_sensitivity_command(commands)
    add_health_command(commands)
    add_hash_key_command(commands)
    args = parser.parse_args(arguments)
    code: int = args.run(args)
    return code


def _methods(_args: argparse.Namespace) -> int:
    from qspec.engine.backend import describe_backend, machine_backend
    from qspec.kernels.int8_linear import has_kernel  # imports torch
    from qspec.quant.bitsandbytes_4bit import runs

    backend = machine_backend()
    missing = set() if backend is Backend.CPU_NATIVE or has_kernel() else {("w8a8", Role.DRAFT)}
    for method in METHODS.values():
        for variant in method.variants:
            if WEIGHT_FORMATS[variant.weights].package is not None and not runs():
                missing |= {(f"{method.name}:{variant.name}", role) for role in Role}
    print(methods_table(backend, missing))
    print(
        f"\nBackend: {describe_backend(backend)}.\n"
        "real: a kernel that gains; emulated: right numbers, no gain. A name alone means its first variant, for a\n"
        "drafter the first one whose weights the verifier holds, for the verifier of a checkpoint that came quantised\n"
        "the one with the checkpoint's own codes. same bits: text with speculation equals that without."
    )
    return 0


if __name__ == "__main__":
    run_program(main)
