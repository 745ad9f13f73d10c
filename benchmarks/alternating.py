"""``python -m benchmarks.alternating``: would two groups of sequences gain that alternate, one drafting while the other
verifies?

One group of B sequences takes a draft and a verification for a round, one after the other. Two groups of B/2 take, for
a round of both, twice what a phase takes in which one drafts and the other verifies:

    one  = D(B) + V(B)
    two  = 2 · (D(B/2) + V(B/2) − overlap · min(D(B/2), V(B/2)))

``overlap`` is 1 where both run side by side as fast as alone, 0 where they only take turns, as on cores or memory that
either can fill. Half the sequences never take less than half the time, and where reading weights decides they take all
of it. So what is gained by overlapping is lost by reading twice, unless rows are what costs; and there the overlap is
small. Which of the two wins is a matter of figures: this prints them for cost tables (``machines``), or with
``--measure`` for workers that it starts and has work alone and at the same time (``overlap``).

What a draft is worth follows from an assumed acceptance. One group may draft any length, 0 included; two groups draft.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from benchmarks.machines import MACHINES, read_machine
from benchmarks.overlap import Overlap, measure_overlaps
from qspec.cli import EXIT_ERROR, run_program
from qspec.config import DEVICES, StackConfig
from qspec.cost_table import CalibratedCosts, CostTable
from qspec.draft_length import expected_tokens
from qspec.errors import InvalidInput, QspecError
from qspec.threads import usable_cpus

OVERLAPS = (0.5, 1.0)
"""For which the gain is told."""
LONGEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternation:
    """So many sequences in one group and in two, each at its best draft length."""

    sequences: int
    one_rate: float
    """Tokens per second of one group."""
    one_length: int
    gains: tuple[float, ...]
    """Two groups' rate over one's, by overlap."""
    least_overlap: float | None
    """From which on two groups are the faster ones; None: not even with a full one."""


def one_group_s(costs: CostTable, sequences: int, draft_length: int, context: int) -> float:
    """Seconds of a round of all sequences, each with ``context`` cached positions."""
    draft = costs.draft_seconds([sequences] * draft_length, sequences * context)
    return draft + costs.verify_seconds(sequences * (1 + draft_length), sequences * context)


def two_groups_s(costs: CostTable, sequences: int, draft_length: int, context: int, overlap: float) -> float:
    """Seconds of a round of two groups that alternate."""
    half = sequences // 2
    draft = costs.draft_seconds([half] * draft_length, half * context)
    verify = costs.verify_seconds(half * (1 + draft_length), half * context)
    return 2 * (draft + verify - overlap * min(draft, verify))


def alternation(
    calibrated: CalibratedCosts, sequences: int, *, acceptance: float, context: int, coordinator_s: float
) -> Alternation:
    """Compare both; ``coordinator_s``: what a round takes besides its calls, which two groups spend behind them."""
    costs = CostTable(calibrated)

    def one(length: int) -> float:
        seconds = one_group_s(costs, sequences, length, context) + coordinator_s
        return sequences * expected_tokens(acceptance, length) / seconds

    def two(overlap: float) -> float:
        return max(
            sequences * expected_tokens(acceptance, length) / two_groups_s(costs, sequences, length, context, overlap)
            for length in range(1, LONGEST + 1))

    best = max(range(LONGEST + 1), key=one)
    steps = [step / 100 for step in range(101)]
    return Alternation(
        sequences=sequences, one_rate=one(best), one_length=best,
        gains=tuple(two(overlap) / one(best) for overlap in OVERLAPS),
        least_overlap=next((overlap for overlap in steps if two(overlap) > one(best)), None))


def render_alternations(machine: str, found: Sequence[Alternation]) -> str:
    """A line for each number of sequences."""
    heads = "  ".join(f"two / one at {overlap:.0%}" for overlap in OVERLAPS)
    lines = [f"{machine}", f"{'sequences':>11} {'one group':>12} {'k':>3}  {heads}  {'needs an overlap of':>20}"]
    for one in found:
        gains = "  ".join(f"{gain:>{len(f'two / one at {overlap:.0%}')}.3f}"
                          for gain, overlap in zip(one.gains, OVERLAPS, strict=True))
        needed = "never gains" if one.least_overlap is None else f"{one.least_overlap:.0%}"
        lines.append(f"{one.sequences:11} {one.one_rate:8.1f} t/s {one.one_length:3}  {gains}  {needed:>20}")
    return "\n".join(lines)


def render_overlaps(found: Sequence[Overlap], acceptance: float) -> str:
    """A line for each number of sequences and draft length; rates at an assumed acceptance."""
    lines = [
        f"{'sequences':>11} {'k':>3} {'draft, ms':>10} {'verify':>8} {'halves':>15} {'both':>8} {'overlap':>8}  "
        f"{'one, t/s':>9} {'two':>9} {'two / one':>10}"]
    for one in found:
        tokens = one.sequences * expected_tokens(acceptance, one.draft_length)
        halves = f"{1000 * one.half_draft_s:.1f} + {1000 * one.half_verify_s:.1f}"
        if not one.draft_length:
            lines.append(
                f"{one.sequences:11} {0:3} {'–':>10} {1000 * one.verify_s:8.1f} {'–':>15} {'–':>8} {'–':>8}  "
                f"{tokens / one.one_s:9.1f} {'–':>9} {'–':>10}")
            continue
        lines.append(
            f"{one.sequences:11} {one.draft_length:3} {1000 * one.draft_s:10.1f} {1000 * one.verify_s:8.1f} "
            f"{halves:>15} {1000 * one.both_s:8.1f} {one.overlap:8.0%}  {tokens / one.one_s:9.1f} "
            f"{tokens / one.two_s:9.1f} {one.one_s / one.two_s:10.3f}")
    return "\n".join(lines)


def main() -> int:
    """Compute or measure, and report."""
    args = _parser().parse_args()
    try:
        _check(args)
        result = measure(args) if args.measure else compute(args)
    except QspecError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_ERROR if isinstance(error, InvalidInput) else 1
    line = json.dumps({"benchmark": "alternating", **result}, allow_nan=False)
    if args.output is not None:
        args.output.write_text(line + "\n", "utf-8")
    print(line)
    return 0


def compute(args: argparse.Namespace) -> dict[str, Any]:
    """From cost tables."""
    result: dict[str, Any] = {
        "acceptance": args.acceptance, "context": args.context, "coordinator_s": args.coordinator_s, "machines": {}}
    for name in args.machine:
        found = [
            alternation(read_machine(name), sequences, acceptance=args.acceptance, context=args.context,
                        coordinator_s=args.coordinator_s)
            for sequences in args.sequences]
        result["machines"][Path(name).name] = [asdict(one) for one in found]
        print(render_alternations(Path(name).name, found))
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """With workers."""
    most = max(args.sequences)
    config = StackConfig(
        model=args.model, draft_quantization=args.draft_quantization, verify_quantization=args.verify_quantization,
        device=args.device, threads=args.threads or usable_cpus(), max_slots=most, prefix_cache=False,
        max_batch_rows=max(StackConfig().max_batch_rows, most * (1 + max(args.draft_lengths))),
        kv_tokens=most * 8 * StackConfig().block_size)
    found = measure_overlaps(
        config, args.sequences, [0, *args.draft_lengths], prompt_tokens=min(args.context, 256), repeats=args.repeats,
        tell=lambda text: print(text, file=sys.stderr, flush=True))
    print(render_overlaps(found, args.acceptance))
    return {"environment": describe_environment(), "acceptance": args.acceptance,
            "overlaps": [{**asdict(one), "overlap": one.overlap} for one in found]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alternating", description="Two groups that alternate against one.")
    add = parser.add_argument
    add("--machine", nargs="+", default=list(MACHINES), metavar="NAME|FILE", help="cost tables (default: all)")
    add("--sequences", type=int, nargs="+", default=[2, 8, 32, 64], metavar="N", help=(
        "sequences in all, even numbers (default: 2 8 32 64)"))
    add("--acceptance", type=float, default=0.85, metavar="A", help="chance of a draft (default: %(default)s)")
    add("--context", type=int, default=200, metavar="N", help=(
        "cached positions of each sequence; of prompts when measuring, 256 at most (default: %(default)s)"))
    add("--coordinator-s", type=float, default=0.0005, metavar="S", help=(
        "seconds of a round besides its calls (default: %(default)s)"))
    add("--measure", action="store_true", help="start a verifier and a drafter, and have them work alone and together")
    add("--model", default=StackConfig.default_of("model"), metavar="NAME", help="theirs (default: %(default)s)")
    add("--device", default=StackConfig.default_of("device"), metavar="NAME", help="cpu, cuda or auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads of each (default: the usable CPUs)")
    add("--draft-quantization", default=StackConfig.default_of("draft_quantization"), metavar="METHOD")
    add("--verify-quantization", default=StackConfig.default_of("verify_quantization"), metavar="METHOD")
    add("--draft-lengths", type=int, nargs="+", default=[1, 2, 4], metavar="K", help=(
        "draft lengths to measure (default: 1 2 4)"))
    add("--repeats", type=int, default=7, metavar="N", help="rounds of each; medians count (default: %(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the JSON object to this file, too")
    return parser


def _check(args: argparse.Namespace) -> None:
    """``InvalidInput`` for what cannot be compared."""
    def require(condition: bool, option: str, problem: str) -> None:
        if not condition:
            raise InvalidInput.field(option, problem)

    require(all(2 <= count <= 512 and count % 2 == 0 for count in args.sequences), "--sequences", (
        "must be even numbers from 2 to 512"))
    require(0 < args.acceptance < 1, "--acceptance", "must be between 0 and 1")
    require(all(1 <= length <= LONGEST for length in args.draft_lengths), "--draft-lengths", (
        f"must be from 1 to {LONGEST}"))
    require(args.context >= 2, "--context", "must be at least 2")
    require(args.coordinator_s >= 0, "--coordinator-s", "must be at least 0")
    require(args.repeats >= 1, "--repeats", "must be at least 1")
    require(args.threads >= 0, "--threads", "must be at least 0")
    require(args.device in DEVICES, "--device", f"must be one of {', '.join(DEVICES)}")
    require(args.output is None or args.output.absolute().parent.is_dir(), "--output", "lies in no directory")


if __name__ == "__main__":
    run_program(main)
