"""The options of ``python -m benchmarks.serving``."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.simulation_report import plotting_possible
from qspec.config import DEVICES, StackConfig
from qspec.errors import InvalidInput
from qspec.threads import usable_cpus

SECTIONS = ("load", "streams", "batches", "prompts", "feeding")
DEFAULT_PROMPTS = ROOT / "benchmarks" / "prompts.jsonl"
LEAST_BATCH_BLOCKS = 3
"""Blocks of a batch size below which it is not judged."""
MOST_STREAMS = 256
"""At once through one stack: what its queue holds besides its slots."""
_LEAST = {
    "num_prompts": 1, "prompt_tokens": 1, "max_tokens": 2, "threads": 0, "slots": 1, "kv_tokens": 0, "draft_length": 1,
    "blocks": 1, "burst": 1, "waves": 1, "stream_tokens": 2, "stream_prompt_tokens": 1, "batch_tokens": 2,
    "batch_prompt_tokens": 1, "batch_blocks": 1, "long_prompt_tokens": 2, "beside_tokens": 2, "beside_prompt_tokens": 1,
    "prompt_blocks": 1, "feeding_tokens": 2,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.serving", description="Measures the server under load.")
    add = found.add_argument
    add("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="NAME", help=(
        f"what to measure: {', '.join(SECTIONS)} (default: all)"))
    add("--model", default=StackConfig.default_of("model"), metavar="NAME", help=(
        "alias, directory, GGUF file or hub id (default: %(default)s)"))
    add("--draft-quantization", default=StackConfig.default_of("draft_quantization"), metavar="METHOD", help=(
        "the drafter's method (default: %(default)s)"))
    add("--verify-quantization", default=StackConfig.default_of("verify_quantization"), metavar="METHOD", help=(
        "the verifier's method (default: %(default)s)"))
    add("--threads", type=int, default=0, metavar="N", help="CPU threads of each worker (default: the usable CPUs)")
    add("--device", default=StackConfig.default_of("device"), metavar="NAME", help=(
        "cpu, cuda or auto (default: %(default)s)"))
    add("--kv-tokens", type=int, default=0, metavar="N", help=(
        "positions in the KV cache (default: enough for as many of a section's texts as there are slots)"))
    add("--slots", type=int, default=StackConfig.default_of("max_slots"), metavar="N", help=(
        "sequences that can run at once under load (default: %(default)s)"))
    add("--prompts", type=Path, default=DEFAULT_PROMPTS, metavar="FILE", help=(
        'objects with "prompt" or "turns", one per line of a .jsonl file (default: the project\'s own)'))
    add("--num-prompts", type=int, default=64, metavar="N", help="use the first N prompts (default: %(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="seed of the arrivals (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the JSON object to this file, too")
    add("--budget", type=float, default=math.inf, metavar="S", help=(
        "begin no block after so many seconds (default: no limit)"))
    add("--log", type=Path, metavar="FILE", help=(
        "keep blocks here as they end, and go on from those that are there; other sections than load add their names"))
    load = found.add_argument_group("load").add_argument
    load("--loads", type=float, nargs="+", default=[0.25, 0.5, 0.8, 1.0, 1.3], metavar="SHARE", help=(
        "arrivals per second as shares of the saturation (default: 0.25 0.5 0.8 1 1.3)"))
    load("--draft-length", type=int, default=4, metavar="K", help="the fixed one (default: %(default)s)")
    load("--prompt-tokens", type=int, default=128, metavar="N", help="cut prompts to N tokens (default: %(default)s)")
    load("--max-tokens", type=int, default=48, metavar="N", help="tokens to make (default: %(default)s)")
    load("--block-seconds", type=float, default=8.0, metavar="S", help=(
        "seconds over which a block's requests arrive (default: %(default)s)"))
    load("--blocks", type=int, default=4, metavar="N", help=(
        "blocks for each load and configuration (default: %(default)s)"))
    load("--burst", type=int, default=32, metavar="N", help=(
        "requests that measure the saturation, all at once (default: %(default)s)"))
    load("--plot", type=Path, metavar="FILE", help="draw the load curve (.png or .svg; needs matplotlib)")
    streams = found.add_argument_group("streams").add_argument
    streams("--streams", type=int, default=200, metavar="N", help="streams at once (default: %(default)s)")
    few = StackConfig().max_slots
    streams("--stream-slots", type=int, nargs="+", default=[few, 200], metavar="N", help=(
        f"slots to do it with, one stack each (default: {few} 200)"))
    streams("--stream-tokens", type=int, default=48, metavar="N", help="tokens of each (default: %(default)s)")
    streams("--stream-prompt-tokens", type=int, default=48, metavar="N", help=(
        "cut their prompts to N tokens (default: %(default)s)"))
    streams("--waves", type=int, default=2, metavar="N", help="times to do it (default: %(default)s)")
    batches = found.add_argument_group("batches").add_argument
    batches("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 64], metavar="N", help=(
        "streams at once (default: 1 8 32 64)"))
    batches("--batch-tokens", type=int, default=128, metavar="N", help="tokens of each (default: %(default)s)")
    batches("--batch-prompt-tokens", type=int, default=48, metavar="N", help=(
        "cut their prompts to N tokens (default: %(default)s)"))
    batches("--batch-blocks", type=int, default=5, metavar="N", help=(
        f"blocks of each size and configuration, by turns; below {LEAST_BATCH_BLOCKS} nothing is judged "
        "(default: %(default)s)"))
    prompts = found.add_argument_group("prompts").add_argument
    prompts("--beside", type=int, nargs="+", default=[1, 4], metavar="N", help="texts that go on (default: 1 4)")
    prompts("--long-prompt-tokens", type=int, default=1024, metavar="N", help=(
        "tokens of the prompt that comes (default: %(default)s)"))
    prompts("--beside-tokens", type=int, default=320, metavar="N", help=(
        "tokens of the texts that go on; enough to last until its first token (default: %(default)s)"))
    prompts("--beside-prompt-tokens", type=int, default=48, metavar="N", help=(
        "cut their prompts to N tokens (default: %(default)s)"))
    prompts("--prompt-blocks", type=int, default=3, metavar="N", help=(
        "blocks of each number and configuration, by turns (default: %(default)s)"))
    feeding = found.add_argument_group("feeding").add_argument
    feeding("--feeding-streams", type=int, nargs="+", default=[1, 8, 64, 256], metavar="N", help=(
        "streams at once to measure the coordinator with (default: 1 8 64 256)"))
    feeding("--feeding-tokens", type=int, default=200, metavar="N", help="tokens of each stream (default: %(default)s)")
    feeding("--pass-ms", type=float, default=20.0, metavar="MS", help=(
        "what a simulated verify pass takes in the search for the most streams (default: %(default)s)"))
    feeding("--gap-ms", type=float, default=50.0, metavar="MS", help=(
        "bound of the time between two messages of a stream, p99 (default: %(default)s)"))
    feeding("--most-fed", type=int, default=1024, metavar="N", help=(
        "try no more streams than so many (default: %(default)s)"))
    return found


def check_options(args: argparse.Namespace) -> None:
    """``InvalidInput`` for what cannot be measured, before anything is started."""
    for option, least in _LEAST.items():
        _require(getattr(args, option) >= least, option, f"must be at least {least}, got {getattr(args, option)}")
    for option in ("stream_slots", "batch_sizes", "beside"):
        _require(all(1 <= count <= MOST_STREAMS for count in getattr(args, option)), option, (
            f"must be from 1 to {MOST_STREAMS}"))
    _require(args.device in DEVICES, "device", f"must be one of {', '.join(DEVICES)}, got {args.device}")
    _require(1 <= args.streams <= MOST_STREAMS, "streams", f"must be from 1 to {MOST_STREAMS}, got {args.streams}")
    _require(1 <= args.burst <= MOST_STREAMS, "burst", f"must be at most {MOST_STREAMS}, got {args.burst}")
    _require(all(1 <= count <= 1024 for count in args.feeding_streams), "feeding_streams", "must be from 1 to 1024")
    _require(all(0 < load <= 10 for load in args.loads), "loads", "must be above 0 and at most 10")
    _require(1 <= args.most_fed <= 1024, "most_fed", f"must be from 1 to 1024, got {args.most_fed}")
    for option in ("block_seconds", "budget", "pass_ms", "gap_ms"):
        _require(getattr(args, option) > 0, option, f"must be above 0, got {getattr(args, option):g}")
    for option in ("output", "plot", "log"):
        path = getattr(args, option)
        _require(path is None or path.absolute().parent.is_dir(), option, "lies in no directory")
    _require(args.plot is None or plotting_possible(), "plot", "needs matplotlib; pip install matplotlib")


def stack_for(args: argparse.Namespace, *, slots: int, tokens: int) -> StackConfig:
    """The stack to measure: so many texts of ``tokens`` tokens, their prompts included, can run at once."""
    config = StackConfig(
        model=args.model, draft_quantization=args.draft_quantization, verify_quantization=args.verify_quantization,
        threads=args.threads or usable_cpus(), device=args.device, max_slots=slots,
        max_batch_rows=max(StackConfig().max_batch_rows, slots))
    blocks = -(-(tokens + config.max_draft_length + 1) // config.block_size)
    return replace(config, kv_tokens=args.kv_tokens or max(slots * blocks * config.block_size, config.kv_tokens))


def _require(condition: bool, option: str, problem: str) -> None:
    if not condition:
        raise InvalidInput.field(f"--{option.replace('_', '-')}", problem)
