"""``python -m benchmarks.simulate``: throughput and latency of draft length policies on machines that are not at hand.

The real loop, warm-up and controller run on simulated workers (``simulated_workers``), whose calls cost what a table
says and whose drafts stand by a model of acceptance. For each load (arrivals per second, or clients of a closed loop)
every policy serves the same requests: auto, fixed draft lengths, and 0. Deterministic for a seed: simulated time is the
only time there is. Standard output gets a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.machines import MACHINES, read_machine
from benchmarks.simulated_workers import AcceptanceModel, Machine
from benchmarks.simulation import Workload, simulate
from benchmarks.simulation_report import Row, plot_rows, plotting_possible, render_rows
from qspec.cli import EXIT_ERROR, run_program
from qspec.config import StackConfig
from qspec.errors import InvalidInput, QspecError


def main() -> int:
    """Simulate and report."""
    args = _parser().parse_args()
    try:
        _check(args)
        rows, load_name = run(args)
    except QspecError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_ERROR
    print(render_rows(rows, load_name))
    if args.plot is not None:
        plot_rows(rows, load_name, args.plot)
    settings = {
        key: str(value) if isinstance(value, Path) or value == math.inf else value for key, value in vars(args).items()}
    line = json.dumps(
        {"benchmark": "simulation", "settings": settings, "rows": [asdict(row) for row in rows]}, allow_nan=False)
    if args.output is not None:
        args.output.write_text(line + "\n", "utf-8")
    print(line)
    return 0


def run(args: argparse.Namespace) -> tuple[list[Row], str]:
    """Every policy under every load; with the name of what the load is."""
    machine = Machine(
        costs=read_machine(args.machine), noise=args.noise, outliers=args.outliers, outlier_factor=args.outlier_factor)
    acceptance = AcceptanceModel(
        mean=args.acceptance, spread=args.spread, difficulty=args.difficulty, insight=args.insight)
    longest = max(args.draft_lengths)
    policies: list[int | None] = [*sorted(set(args.draft_lengths)), None]
    rows = []
    for load in args.rate or args.clients:
        for policy in policies:
            workload = Workload(
                requests=args.requests, rate=load if args.rate else None, clients=None if args.rate else int(load),
                prompt_tokens=args.prompt_tokens, output_tokens=args.output_tokens, draft_length=policy, seed=args.seed)
            outcome = simulate(
                workload, machine, acceptance, slots=args.slots, longest=longest, coordinator_s=args.coordinator_s,
                early_stop=args.early_stop, max_prefill_s=args.max_prefill_s)
            name = "auto" if policy is None else f"k = {policy}"
            sys.stderr.write(f"load {load:g}, {name}: {outcome.throughput:.1f} tokens/s\n")
            rows.append(Row(load=load, policy=name, outcome=outcome))
    return rows, "arrivals/s" if args.rate else "clients"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description="Simulates the serving engine.")
    add = parser.add_argument
    add("--machine", default="memory-bound", metavar="NAME|FILE", help=(
        f"cost table: {', '.join(MACHINES)}, or a JSON file with the fields of CalibratedCosts (default: %(default)s)"))
    add("--rate", type=float, nargs="+", metavar="R", help="Poisson arrivals per second, one load each")
    add("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N", help=(
        "clients of a closed loop, one load each; not with --rate (default: 1 8 32)"))
    add("--requests", type=int, default=100, metavar="N", help="requests per load (default: %(default)s)")
    add("--prompt-tokens", type=int, default=200, metavar="N", help="mean length of prompts (default: %(default)s)")
    add("--output-tokens", type=int, default=150, metavar="N", help="mean length of answers (default: %(default)s)")
    add("--draft-lengths", type=int, nargs="+", default=[0, 1, 2, 4, 8], metavar="K", help=(
        "fixed draft lengths to compare with; the largest is auto's limit, too (default: 0 1 2 4 8)"))
    add("--acceptance", type=float, default=0.85, metavar="A", help="mean chance of a draft (default: %(default)s)")
    add("--spread", type=float, default=0.5, metavar="S", help=(
        "deviation between sequences, in the logit of the chance (default: %(default)s)"))
    add("--difficulty", type=float, default=1.5, metavar="S", help=(
        "deviation between tokens, in the logit of the chance (default: %(default)s)"))
    add("--insight", type=float, default=0.5, metavar="R", help=(
        "correlation of the drafter's confidence with a token's difficulty (default: %(default)s)"))
    add("--early-stop", action="store_true", help="let auto's drafts end early, by confidences that cost nothing")
    add("--max-prefill-s", type=float, default=StackConfig.default_of("max_prefill_s"), metavar="S", help=(
        "seconds that prompts may add to a round in which other texts go on (default: %(default)s)"))
    add("--slots", type=int, default=32, metavar="N", help="sequences that can run at once (default: %(default)s)")
    add("--noise", type=float, default=0.03, metavar="S", help="deviation of a call's time (default: %(default)s)")
    add("--outliers", type=float, default=0.002, metavar="P", help="share of delayed calls (default: %(default)s)")
    add("--outlier-factor", type=float, default=10.0, metavar="F", help=(
        "how much longer they take (default: %(default)s)"))
    add("--coordinator-s", type=float, default=0.0005, metavar="S", help=(
        "seconds of a round besides its calls (default: %(default)s)"))
    add("--seed", type=int, default=1, metavar="N", help="seed of everything random (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the JSON object to this file, too")
    add("--plot", type=Path, metavar="FILE", help="draw the figures over the load (.png or .svg; needs matplotlib)")
    return parser


def _check(args: argparse.Namespace) -> None:
    """``InvalidInput`` for what cannot be simulated."""
    for option in ("requests", "prompt_tokens", "output_tokens", "slots"):
        _require(getattr(args, option) >= 1, option, f"must be at least 1, got {getattr(args, option)}")
    for option in ("acceptance", "insight", "outliers"):
        _require(0 <= getattr(args, option) <= 1, option, f"must be from 0 to 1, got {getattr(args, option):g}")
    for option in ("spread", "difficulty", "noise", "coordinator_s"):
        _require(0 <= getattr(args, option) < 100, option, f"must be from 0 to 100, got {getattr(args, option):g}")
    _require(args.max_prefill_s >= 0, "max_prefill_s", f"must be at least 0, got {args.max_prefill_s:g}")
    _require(1 <= args.outlier_factor < 1e6, "outlier_factor", "must be from 1 to a million")
    _require(all(0 < load < 1e6 for load in args.rate or args.clients), "rate" if args.rate else "clients", (
        "must be above 0 and below a million"))
    _require(all(0 <= length <= 64 for length in args.draft_lengths), "draft_lengths", "must be from 0 to 64")
    for option in ("output", "plot"):
        path = getattr(args, option)
        _require(path is None or path.absolute().parent.is_dir(), option, "lies in no directory")
    _require(args.plot is None or plotting_possible(), "plot", "needs matplotlib; pip install matplotlib")


def _require(condition: bool, option: str, problem: str) -> None:
    if not condition:
        raise InvalidInput.field(f"--{option.replace('_', '-')}", problem)


if __name__ == "__main__":
    run_program(main)
