"""``python -m qspec quantize``: its options, and what it prints. Imports torch only when it runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from qspec.calibration.config import Algorithm, CalibrationConfig
from qspec.progress_display import showing_progress

_DEFAULTS = {field.name: field.default for field in fields(CalibrationConfig)}


def add_quantize_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand; its ``run`` takes the parsed arguments and returns the exit code."""
    parser = commands.add_parser(
        "quantize", help="choose 4-bit codes by what they do to a model's outputs",
        description="Makes a model directory whose 4-bit codes keep the outputs that the model has for a calibration "
        "text. Give the directory as --model: the method then uses these codes. The same command goes on where an "
        "interrupted one was.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="alias, directory, GGUF file or hub id")
    add("--method", default=_DEFAULTS["method"], metavar="METHOD", help=(
        "int4:g32, g64 or g128, or one of them with -asymmetric (default: %(default)s)"))
    add("--algorithm", choices=[each.value for each in Algorithm], default=_DEFAULTS["algorithm"].value, help=(
        "how codes are chosen (default: %(default)s)"))
    add("--calibration", required=True, type=Path, metavar="FILE", help=(
        "texts like those that the model is to read: *.jsonl with prompt, turns, messages or text in each line, or "
        "plain text"))
    add("--output", required=True, type=Path, metavar="DIRECTORY", help="the directory to make")
    add("--answer-tokens", type=int, default=_DEFAULTS["answer_tokens"], metavar="N", help=(
        "let the model answer each text of a *.jsonl file, and calibrate on so many tokens of its answer, too "
        "(default: %(default)s)"))
    add("--longest", type=int, default=_DEFAULTS["longest"], metavar="N", help=(
        "tokens of a text that are seen together (default: %(default)s)"))
    parser.set_defaults(run=run_quantize)


def run_quantize(args: argparse.Namespace) -> int:
    """Quantise; returns the exit code. Raises a ``QspecError`` for whatever cannot be used."""
    from qspec.calibration.quantised_model import quantise_model

    config = CalibrationConfig(
        model=args.model, method=args.method, algorithm=Algorithm(args.algorithm), calibration=args.calibration,
        output=args.output, answer_tokens=args.answer_tokens, longest=args.longest,
    )
    with showing_progress() as progress:
        model = quantise_model(config, progress)
    (weights,) = set(model.stored.values())
    sys.stdout.write(
        f"{args.output}: {len(model.stored)} layers in {weights} by {args.algorithm}; use it as --model {args.output}\n"
    )
    return 0
