"""Compares plain decoding with drafting: ``python benchmark_qspec.py --same_model --test_all``.

Prints a table and writes ``qspec_benchmark.json`` and a chart, ``qspec_benchmark.png``, to ``--output_dir``.
The exit code is 1 when texts differ that have to be equal.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.api.method_choice import check_pair
from qspec.api.script_options import add_script_arguments, model_choice
from qspec.cli import run_program
from qspec.errors import InvalidInput
from qspec.quant.methods import Backend

if TYPE_CHECKING:
    from qspec import QuantizedModel

EXIT_DIFFERENT = 1
NUM_PROMPTS = 4
PROMPT_TOKENS = 64


def main() -> int:
    """Measure and report."""
    args = _parser().parse_args()
    if args.repeats < 1:
        raise InvalidInput.field("--repeats", f"must be at least 1, got {args.repeats}")
    choice = model_choice(args)
    check_pair(args.draft_quantization, args.verify_quantization, Backend.CPU)

    from benchmarks.comparison import compare, ways  # torch: after the options were read
    from benchmarks.comparison_report import draw_chart, figures_of, table
    from benchmarks.environment import describe_environment
    from qspec.api.auto_pair import auto_pair
    from qspec.api.text_request import TextRequest

    request = TextRequest(
        max_len=args.max_tokens, gamma=args.gamma, temperature=args.temperature, random_seed=args.seed)
    draft_method, verify_method = auto_pair(choice.verify, args.draft_quantization, args.verify_quantization)
    environment = describe_environment()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    def encode(model: QuantizedModel) -> list[list[int]]:
        most = max(min(PROMPT_TOKENS, model.max_length - args.max_tokens), 1)
        return [model.tokenizer.encode(text)[:most] for text in _prompts(args.input)]

    comparison = compare(
        ways(choice, draft_method, verify_method, every_method=args.test_all), encode, request,
        repeats=args.repeats, tell=_tell if args.verbose else _silent,
    )
    print(table(comparison))
    baseline = comparison.measurements[0]
    reproducible = args.temperature == 0 or args.seed is not None
    differing = comparison.differing(baseline) if reproducible else []
    for name in differing:
        print(f"{name}: its text is not that of {baseline.way.name}", file=sys.stderr)
    settings = {
        **{key: value for key, value in vars(args).items() if key != "output_dir"}, "draft_method": draft_method,
        "verify_method": verify_method, "prompts": len(_prompts(args.input)), "prompt_tokens": PROMPT_TOKENS,
    }
    ways_found = {found.way.name: figures_of(found, baseline) for found in comparison.measurements}
    record = {"benchmark": "qspec", "environment": environment, "settings": settings, "ways": ways_found,
              "refused": comparison.refused, "differing_texts": differing}
    path = args.output_dir / "qspec_benchmark.json"
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n", "utf-8")
    print(f"figures: {path}")
    models = choice.verify if choice.same else f"{choice.draft} drafts for {choice.verify}"
    sampling = "greedy" if args.temperature == 0 else f"temperature {args.temperature:g}"
    chart = args.output_dir / "qspec_benchmark.png"
    try:
        draw_chart(comparison, f"{models}: {args.max_tokens} tokens, draft length {args.gamma}, {sampling}", chart)
        print(f"chart: {chart}")
    except ImportError:
        print("no chart: matplotlib is not installed; pip install matplotlib")
    return EXIT_DIFFERENT if differing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_script_arguments(parser)
    add = parser.add_argument
    add("--test_all", action="store_true", help=(
        "every method of this machine, and drafts without quantisation, beside plain decoding and the chosen pair"))
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="timed runs over all prompts (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("bench-results"), metavar="DIRECTORY", help=(
        "where the figures and the chart go (default: %(default)s)"))
    return parser


def _prompts(given: str | None) -> list[str]:
    """The prompt that was given, else the first of the project's own."""
    if given is not None:
        if not given:
            raise InvalidInput.field("--input", "is empty; give a text")
        return [given]
    path = Path(__file__).resolve().parent / "benchmarks" / "prompts.jsonl"
    return [json.loads(line)["turns"][0] for line in path.read_text("utf-8").splitlines()[:NUM_PROMPTS]]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    run_program(main)
