"""What a GPU makes of QSPEC: whole steps, pairs, plain decoding, the stack, transformers, kernels, sharing.

``python -m benchmarks.gpu --output DIR [--section NAME …]``: names and groups of sections (``--list``), run in the
order given, by default all of them. Whatever was measured is in ``DIR/results.json`` at once, and the same command goes
on where it stopped: cell by cell, with what failed tried once more. ``--limit`` seconds after the start nothing new is
begun. Tables, verdicts and a line of JSON end it.

Sections run in a process of their own: a fault of the GPU, which ends every process that uses it, costs the cell that
it happened in. ``x1``, ``x7`` and ``x12`` are SmolLM2 and the same function widened to 5.4 and 15.7 billion parameters
(``benchmarks.widening``); a widened model's acceptance is its own. Without a GPU the kernels' sections try themselves
out on tiny shapes in Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

_ATTEMPT, _UNTIL = "QSPEC_BENCH_ATTEMPT", "QSPEC_BENCH_UNTIL"
"""Tell a process of the run its number, and when the run has to end."""
_MOST_ATTEMPTS = 4
_GPU_LOST = 75


def main() -> int:
    """Start processes until one has gone through all sections; 0 when all are complete, else 1, 2 for bad options."""
    if (attempt := os.environ.get(_ATTEMPT)) is not None:
        from benchmarks.gpu.run_program import run_program

        return run_program(_options(), int(attempt), float(os.environ[_UNTIL]), lost=_GPU_LOST)
    until, code = time.time() + _options().limit, _GPU_LOST
    signal.signal(signal.SIGTERM, _end)
    for number in range(_MOST_ATTEMPTS):
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]],
            env={**os.environ, _ATTEMPT: str(number), _UNTIL: str(until)})
        try:
            code = process.wait()
        finally:
            process.terminate()
        if code >= 0 and code != _GPU_LOST:
            return code
        print(f"the process of the sections ended with {code}; another one goes on", flush=True)
    return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", nargs="+", action="extend", default=[], metavar="NAME", help="sections and groups (--list)")
    add("--list", action="store_true", help="name them")
    add("--output", type=Path, default=Path("gpu-results"), metavar="DIR", help="folder of the results (%(default)s)")
    add("--limit", type=float, default=480.0, metavar="SECONDS", help="after which nothing is begun (%(default)s)")
    add("--seconds", type=float, default=420.0, metavar="SECONDS", help="the same for each section (%(default)s)")
    add("--again", action="store_true", help="measure anew what is there")
    add("--quick", action="store_true", help="fewer kernels, shapes and numbers of rows")
    add("--against", type=Path, metavar="FILE", help="results to print those of kernels beside")
    add("--model", default="smollm2", help="alias, directory or GGUF file (%(default)s)")
    add("--draft", default="fp8:plane", help="the drafter's method, in sections of one pair (%(default)s)")
    add("--verify", default="none:fp16", help="the verifier's method (%(default)s)")
    add("--batch", type=int, nargs="+", default=[], help="sequences at once, in the place of a section's own")
    add("--k", type=_length, nargs="+", default=[], help="draft lengths; auto: the controller's")
    add("--sampling", nargs="+", default=[], help="greedy, coupled, rejection, filtered")
    add("--tokens", type=int, default=96, help="of each sequence that are measured (%(default)s)")
    return parser.parse_args()


def _length(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
