"""``python -m benchmarks.methods``: measure every method and every pair that makes sense, and write the table.

Everything is computed by ``qspec.evaluation``; which pairs, ``benchmarks.method_pairs`` says.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from benchmarks.calibrated_figures import measure_calibrated
from benchmarks.environment import ROOT, describe_environment
from benchmarks.method_figures import measure_methods, own_answers
from benchmarks.method_pairs import all_choices
from benchmarks.methods_document import Circumstances, methods_document
from qspec.cli import run_program
from qspec.config import DEFAULT_MODEL
from qspec.errors import InvalidInput
from qspec.evaluation.scoring import ScoredModel
from qspec.evaluation.sensitivity import full_name
from qspec.evaluation.token_sequences import token_sequences
from qspec.models.converted import prepare
from qspec.models.tokenizer import Tokenizer
from qspec.progress_display import showing_progress

_LONGEST_PIECE = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code."""
    args = _parser().parse_args(arguments)
    for option in ("prompts_count", "answer_tokens"):
        if (value := getattr(args, option)) < 1:
            raise InvalidInput.field(f"--{option.replace('_', '-')}", f"must be at least 1, got {value}")
    with showing_progress() as progress:
        model = prepare(args.model, progress=progress)
    tokenizer = Tokenizer.load(model.tokenizer_directory)
    most = model.config.max_position
    if args.answer_tokens >= most:
        raise InvalidInput.field("--answer-tokens", f"must be below the model's {most} positions")
    prompts = token_sequences(args.prompts, tokenizer, most - args.answer_tokens, "--prompts")[: args.prompts_count]
    text = token_sequences(args.text, tokenizer, min(_LONGEST_PIECE, most), "--text")
    answers = own_answers(args.model, prompts, args.answer_tokens)
    scored = ScoredModel(model)
    with showing_progress() as progress:
        methods, pairs = measure_methods(scored, answers, text, progress)
        calibrated = measure_calibrated(scored, args.calibrated, answers, text, progress)
    environment = describe_environment()
    document = methods_document(methods, pairs, calibrated, Circumstances(
        model=args.model,
        command=_command(args),
        machine=f"CPU {environment['cpu'] or 'unknown'}, torch {environment['torch']}, Python {environment['python']}",
        prompts=args.prompts.name,
        num_prompts=len(prompts),
        answer_tokens=args.answer_tokens,
        text=str(args.text.relative_to(ROOT)) if args.text.is_relative_to(ROOT) else args.text.name,
        misfits={full_name(choice): why for choice in all_choices() if (why := scored.misfit(choice.variant.weights))},
    ))
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(document, "utf-8")
    except OSError as error:
        raise InvalidInput.field("--output", f"{args.output} cannot be written ({error.strerror or error})") from error
    print(f"written: {args.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=(__doc__ or "").split(":", 1)[1])
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, metavar="MODEL", help="(default: %(default)s)")
    add("--prompts", type=Path, default=ROOT / "benchmarks" / "prompts.jsonl", metavar="FILE", help=(
        "prompts that the model answers, and whose answers are drafted (default: benchmarks/prompts.jsonl)"))
    add("--prompts-count", type=int, default=10, metavar="N", help="use the first N of them (default: %(default)s)")
    add("--answer-tokens", type=int, default=96, metavar="N", help="longest answer (default: %(default)s)")
    add("--text", type=Path, default=ROOT / "benchmarks" / "public_domain.txt", metavar="FILE", help=(
        "text to measure perplexity on (default: benchmarks/public_domain.txt)"))
    add("--calibrated", type=Path, action="append", default=[], metavar="DIRECTORY", help=(
        "a directory that python -m qspec quantize made of the model; may be given several times"))
    add("--output", type=Path, default=ROOT / "docs" / "methods.md", metavar="FILE", help=(
        "the document (default: docs/methods.md)"))
    return parser


def _command(args: argparse.Namespace) -> str:
    """The command line, in names of files and not of this machine's directories; defaults left out."""
    parts = ["python", "-m", "benchmarks.methods"]
    for option, value in vars(args).items():
        if option == "output" or value == _parser().get_default(option):
            continue
        for each in value if isinstance(value, list) else [value]:
            parts += [f"--{option.replace('_', '-')}", each.name if isinstance(each, Path) else str(each)]
    return shlex.join(parts)


if __name__ == "__main__":
    run_program(main)
