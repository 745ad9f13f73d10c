"""Whole steps on a GPU: tokens per second plain and drafted, what they cost, and what others make of the same weights.

``python -m benchmarks.gpu.decode --output DIR --section x7`` (``--list`` names the sections). A section takes under
eight minutes; what it measured is written as it goes, and running it again goes on where it stopped (``--again``
starts over). ``x1``, ``x7`` and ``x12`` are SmolLM2 and the same function widened to 5.6 and 15 billion parameters:
both engines in one process (``decode_cells``). ``transformers-…`` is ``generate`` on the same weights, ``stack-…`` the
whole stack as processes, over gRPC and under MPS where it is there. ``table`` prints what lies in DIR. The last line is
JSON. A widened model's acceptance is its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.gpu.decode_cells import BATCHES, LENGTHS, TEMPERATURES, measure_cells
from benchmarks.gpu.decode_table import table_lines
from benchmarks.gpu.section_file import SectionFile
from benchmarks.gpu.stack_decode import measure_stack
from benchmarks.gpu.transformers_decode import measure_transformers

_FACTORS = (1, 7, 12)


def main() -> int:
    """Measure and print; 0."""
    options = _parser().parse_args()
    sections = _sections(options)
    if options.list:
        sys.stdout.write("\n".join((*sections, "table")) + "\n")
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    records: dict[str, Any] = {}
    for name in options.section or ():
        if name == "table":
            continue
        file = SectionFile(options.output / f"decode-{name}.json", time.perf_counter() + options.seconds)
        if options.again:
            file.forget()
        environment = describe_environment()
        if torch.cuda.is_available():
            environment |= {"gpu": torch.cuda.get_device_name(), "torch_cuda": torch.version.cuda}
        file.put("environment", environment)
        sections[name](file)
        records[name] = file.record
    if "table" in (options.section or ()):
        records = {path.stem.removeprefix("decode-"): json.loads(path.read_text("utf-8"))
                   for path in sorted(options.output.glob("decode-*.json"))}
        for line in table_lines(records):
            sys.stdout.write(line + "\n")
    sys.stdout.write(json.dumps(records) + "\n")
    return 0


def _sections(options: argparse.Namespace) -> dict[str, Callable[[SectionFile], None]]:
    """By name."""
    cells = partial(
        measure_cells, model=options.model, draft=options.draft, verify=options.verify, batches=options.batch,
        lengths=options.k, temperatures=options.temperature, tokens=options.tokens, tell=_tell)
    found: dict[str, Callable[[SectionFile], None]] = {}
    for factor in _FACTORS:
        found[f"x{factor}"] = partial(cells, factor=factor)
        found[f"transformers-x{factor}"] = partial(measure_transformers, model=options.model, factor=factor, tell=_tell)
    found["stack-x1"] = partial(
        measure_stack, model=options.model, draft=options.draft, verify=options.verify, tell=_tell)
    found["stack-directory"] = partial(
        measure_stack, model=str(options.directory), draft=options.draft, verify=options.verify, tell=_tell)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--section", nargs="+", help="what to measure; table: print what was measured")
    add("--list", action="store_true", help="name the sections")
    add("--output", type=Path, default=Path("gpu-results"), help="folder of the results (%(default)s)")
    add("--again", action="store_true", help="measure anew what lies there")
    add("--seconds", type=float, default=420.0, help="after which a section begins nothing new (%(default)s)")
    add("--model", default="smollm2", help="alias, directory or GGUF file")
    add("--directory", type=Path, default=Path("widened"), help="of stack-directory: from benchmarks.widen")
    add("--batch", type=int, nargs="+", default=list(BATCHES), help="sequences at once")
    add("--k", type=_length, nargs="+", default=list(LENGTHS), help="draft lengths; auto: the controller's")
    add("--temperature", type=float, nargs="+", default=list(TEMPERATURES), help="0: greedy")
    add("--draft", default="fp8:plane", help="the drafter's method")
    add("--verify", default="none:fp16", help="the verifier's method")
    add("--tokens", type=int, default=96, help="tokens of each sequence that are measured")
    return parser


def _length(text: str) -> int | None:
    return None if text == "auto" else int(text)


def _tell(text: str, share: float | None = None) -> None:
    """Lines, not every percent."""
    if share is None or share == 1.0:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
