"""``python -m qspec sensitivity``: its options, and what it prints. Imports torch only when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec.config import DEFAULT_MODEL
from qspec.errors import InvalidInput
from qspec.progress_display import showing_progress
from qspec.quant.methods import (
    NO_DRAFTER,
    Backend,
    check_draft_method,
    check_verify_method,
    choose_draft,
    choose_verify,
)

if TYPE_CHECKING:
    from qspec.evaluation.sensitivity import Sensitivity

_GRAINS = ("matrix", "layer", "kind")
_LONGEST = 256


def add_sensitivity_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand; its ``run`` takes the parsed arguments and returns the exit code."""
    parser = commands.add_parser(
        "sensitivity", help="which modules cost most acceptance under a method",
        description="Scores texts with each module alone in METHOD and all others as the verifier has them. The last "
        "line names the modules that are best left to the verifier's method.",
    )
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, metavar="MODEL", help=(
        "alias, directory, GGUF file or hub id (default: %(default)s)"))
    add("--method", required=True, metavar="METHOD", help="the drafter's method, METHOD or METHOD:VARIANT")
    add("--against", default="none", metavar="METHOD", help="the verifier's method (default: %(default)s)")
    add("--texts", required=True, type=Path, metavar="FILE", help=(
        "texts to score: *.jsonl with prompt, turns, messages or text in each line, or plain text"))
    add("--per", choices=_GRAINS, default=_GRAINS[0], help="what counts as one module (default: %(default)s)")
    add("--positions", type=int, default=1024, metavar="N", help=(
        "most positions to score; each module costs a pass over them (default: %(default)s)"))
    add("--output", type=Path, metavar="DIRECTORY", help="write sensitivity.csv, .json and .png there")
    add("--no-plot", action="store_true", help="write no .png, which needs matplotlib")
    parser.set_defaults(run=run_sensitivity)


def run_sensitivity(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code. Raises a ``QspecError`` for whatever cannot be used."""
    _check("--against", check_verify_method, args.against)
    _check("--method", check_draft_method, args.method)
    if args.method == NO_DRAFTER:
        raise InvalidInput.field("--method", "'off' is no method; there is nothing to measure")
    if args.positions < 2:
        raise InvalidInput.field("--positions", f"must be at least 2, got {args.positions}")
    from qspec.evaluation.sensitivity_report import (
        draw_sensitivity,
        override_line,
        require_plotting,
        sensitivity_table,
        write_sensitivity,
    )

    plots = args.output is not None and not args.no_plot
    if plots:
        require_plotting()
    found = _measure(args)
    print(sensitivity_table(found))
    print()
    if args.output is not None:
        settings = {"model": args.model, "texts": str(args.texts), "per": args.per}
        files = write_sensitivity(found, settings, args.output)
        if plots:
            files.append(args.output / "sensitivity.png")
            draw_sensitivity(found, f"{args.model}: each {args.per} alone in {found.method}", files[-1])
        print(f"written: {', '.join(map(str, files))}")
    print(f"helps most: {override_line(found)}")
    return 0


def _measure(args: argparse.Namespace) -> Sensitivity:
    from qspec.evaluation.scoring import ScoredModel, first_positions
    from qspec.evaluation.sensitivity import Grain, measure_sensitivity
    from qspec.evaluation.token_sequences import token_sequences
    from qspec.models.converted import prepare
    from qspec.models.tokenizer import Tokenizer

    with showing_progress() as progress:
        model = prepare(args.model, progress=progress)
    against = choose_verify(args.against, Backend.CPU, stored=model.stored)
    method = choose_draft(args.method, Backend.CPU, verify=against)
    assert method is not None
    longest = min(_LONGEST, model.config.max_position)
    texts = token_sequences(args.texts, Tokenizer.load(model.tokenizer_directory), longest, "--texts")
    with showing_progress() as progress:
        return measure_sensitivity(
            ScoredModel(model), method, against, first_positions(texts, args.positions), Grain(args.per), progress)


def _check(option: str, check: Callable[[str, Backend], None], name: str) -> None:
    """``check`` a method's name, its errors in terms of the option."""
    try:
        check(name, Backend.CPU)
    except InvalidInput as error:
        raise InvalidInput.field(option, "; ".join(each.description for each in error.violations)) from None
