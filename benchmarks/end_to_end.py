"""``make bench``: the whole stack through gRPC, against plain decoding and other engines, in one run.

First the stacks (``stack_run``), then transformers when they have ended, llama.cpp where it is asked for, and the start
of the client. Greedy decoding of one stream; nothing is drawn at random but the bootstrap of the confidence intervals,
whose seed is fixed. Standard output gets the report and, as its last line, one JSON object with everything; progress
goes to standard error.

The exit code is 1 when something broke or the texts of two configurations differ, and 2 for options that cannot be
used. A missed target alone is a result, not a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, describe_environment
from benchmarks.first_token import measure_first_token
from benchmarks.llama_cpp_report import llama_cpp_figures, llama_cpp_samples, llama_cpp_verdicts
from benchmarks.llama_cpp_run import LlamaCpp, check_llama_cpp, run_llama_cpp
from benchmarks.report import (
    configuration_figures,
    differing_prompts,
    memory_figures,
    transformers_agreement,
    verdicts,
)
from benchmarks.stack_run import CONFIGURATIONS, PLAIN, run_stacks
from benchmarks.statistics import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES
from benchmarks.table import render
from benchmarks.transformers_run import run_transformers
from coordinator.client.prompts import read_prompts
from qspec.cli import EXIT_ERROR, run_program
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError
from qspec.rpc.options import quieten_grpc
from qspec.threads import usable_cpus

EXIT_FAILURE = 1
"""Exit code when something broke, and when texts differ."""
DEFAULT_PROMPTS = ROOT / "benchmarks" / "prompts.jsonl"


def main() -> int:
    """Measure and report."""
    quieten_grpc()
    args = _parser().parse_args()
    try:
        result, failed = measure(args)
    except QspecError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_ERROR if isinstance(error, InvalidInput) else EXIT_FAILURE
    line = json.dumps(result, ensure_ascii=False, allow_nan=False)
    if args.output is not None:
        args.output.write_text(line + "\n", "utf-8")
    print(line)
    return EXIT_FAILURE if failed else 0


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Measure, print the report for people; returns everything and whether texts differ."""
    _check(args)
    prompts = read_prompts([], [args.prompts])[: args.num_prompts]
    environment = describe_environment()
    threads = args.threads or usable_cpus()
    config = StackConfig(model=args.model, threads=threads)
    run = asyncio.run(run_stacks(
        config, prompts, prompt_tokens=args.prompt_tokens, max_tokens=args.max_tokens, tell=_tell))
    reference = None
    if not args.skip_transformers:
        _tell("loading the model into transformers")
        ours = [sample.token_ids for sample in run.samples[PLAIN.name]]
        reference = run_transformers(
            args.model, run.prompts, ours, max_tokens=args.max_tokens, threads=threads)
    others: tuple[LlamaCpp, ...] = ()
    if args.llama_cpp:
        others = run_llama_cpp(args.model, run.prompts, max_tokens=args.max_tokens, threads=threads, tell=_tell)
    starts = []
    for index in range(args.starts):
        _tell(f"start {index + 1} of {args.starts} of the client")
        starts.append(measure_first_token([f"--model={args.model}", f"--threads={threads}"]))
    first_token_s = statistics.median(start.first_text_s for start in starts)
    figures = configuration_figures(run, reference, llama_cpp_samples(others))
    llama_cpp = llama_cpp_figures(run, others, figures)
    differing = differing_prompts(run.samples)
    found = [*verdicts(figures, first_token_s, differing), *llama_cpp_verdicts(llama_cpp)]
    result = {
        "benchmark": "end_to_end",
        "environment": environment,
        "settings": {
            "model": args.model, "verify_method": run.info.verify_method, "verify_kernel": run.info.verify_kernel,
            "draft_method": run.info.draft_method, "draft_kernel": run.info.draft_kernel, "threads": threads,
            "max_tokens": args.max_tokens, "prompt_tokens": args.prompt_tokens, "prompts": _shown(args.prompts),
            "num_prompts": len(prompts), "prompt_lengths": [len(prompt) for prompt in run.prompts],
            "sampling": "greedy", "order": [configuration.name for configuration in CONFIGURATIONS],
            "bootstrap": {"seed": BOOTSTRAP_SEED, "resamples": RESAMPLES, "confidence": CONFIDENCE},
        },
        "configurations": figures,
        "server_costs": {"verify_s": list(run.info.verify_s), "draft_step_s": run.info.draft_step_s},
        "differing_prompts": differing,
        "transformers": None if reference is None else {
            **transformers_agreement(run, reference), "load_s": reference.load_s},
        "llama_cpp": llama_cpp,
        "memory": memory_figures(run),
        "first_token": {"median_s": first_token_s, "runs": [asdict(start) for start in starts]},
        "verdicts": [asdict(verdict) for verdict in found],
    }
    print(render(result, found))
    return result, any(differing.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description="Measures the whole stack.")
    add = parser.add_argument
    add("--model", default=StackConfig.default_of("model"), metavar="NAME", help=(
        "alias, directory, GGUF file or hub id (default: %(default)s)"))
    add("--prompts", "--prompts-file", type=Path, default=DEFAULT_PROMPTS, metavar="FILE", help=(
        'objects with "prompt" or "turns", one per line of a .jsonl file (default: the project\'s own)'))
    add("--num-prompts", type=int, default=6, metavar="N", help="use the first N prompts (default: %(default)s)")
    add("--prompt-tokens", type=int, default=512, metavar="N", help="cut prompts to N tokens (default: %(default)s)")
    add("--max-tokens", type=int, default=128, metavar="N", help="tokens to make (default: %(default)s)")
    add("--threads", type=int, default=0, metavar="N", help=(
        "CPU threads of each worker, and of the other engines (default: the CPUs that may be used)"))
    add("--starts", type=int, default=3, metavar="N", help=(
        "runs of the client for the time to its first token (default: %(default)s)"))
    add("--skip-transformers", action="store_true", help="leave the comparison with transformers out, and say so")
    add("--llama-cpp", action="store_true", help=(
        "compare with llama.cpp in F16 and Q8_0, too; needs a GGUF model and llama-cpp-python"))
    add("--output", type=Path, metavar="FILE", help="write the JSON object to this file, too")
    return parser


def _check(args: argparse.Namespace) -> None:
    """``InvalidInput`` for what cannot be measured, before anything is started."""
    for option, least in (("num_prompts", 1), ("prompt_tokens", 1), ("max_tokens", 2), ("threads", 0), ("starts", 1)):
        if getattr(args, option) < least:
            raise InvalidInput.field(
                f"--{option.replace('_', '-')}", f"must be at least {least}, got {getattr(args, option)}")
    if args.llama_cpp:
        check_llama_cpp(args.model)
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise InvalidInput.field("--output", f"{args.output.absolute().parent} is no directory")


def _shown(path: Path) -> str:
    """A path as the report names it: below the repository's root without that."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    run_program(main)
