"""All that a run found, as lines for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.decode_table import cells_table, missing_lines, pairs_table, rates_table
from benchmarks.gpu.kernel_figures import kernel_figures
from benchmarks.gpu.plans import CELLS
from benchmarks.gpu.summary import comparison, floors_table, linear_summary
from benchmarks.gpu.verdicts import verdicts


def report_lines(records: Mapping[str, Mapping[str, Any]], against: Path | None = None) -> Iterator[str]:
    """Tables of the sections that have anything, then what is missing, then verdicts."""
    for name, record in records.items():
        cells = record["cells"]
        if not cells:
            continue
        if name.partition(" ")[0] in CELLS:
            yield from cells_table(name, record)
        elif name.startswith("pairs-"):
            yield from pairs_table(name, record)
        elif name.startswith(("plain-", "transformers-")):
            yield from rates_table(name, cells)
        elif name.startswith("stack-"):
            yield from _stack_table(name, cells)
    figures = kernel_figures(records)
    yield from linear_summary(figures.get("linear", []))
    yield from floors_table(figures)
    if against is not None:
        yield from comparison(kernel_figures(json.loads(against.read_text("utf-8"))), figures)
    yield from missing_lines(records)
    for each in verdicts(records):
        yield each.line()


def _to_the_end(found: Mapping[str, Any]) -> str:
    """The ratio to the last text's end; older results have no other, and call it the ratio."""
    ratios = found.get("ratios_to_the_end")
    return f", to the last text's end {statistics.median(ratios):.3f}" if ratios else ""


def _stack_table(name: str, cells: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}, over gRPC"
    for cell, found in cells.items():
        if "shares" in found:
            shares = ", ".join(f"{part} {share:.1%}" for part, share in found["shares"].items() if part != "wall")
            yield f"{cell}: {found['decode_tokens_per_s']:.1f} tok/s, {found['seconds']['wall'] * 1e3:.3f} ms: {shares}"
        elif "ratio" in found:
            rates = {part: sorted(values)[len(values) // 2] for part, values in found["tokens_per_s"].items()}
            yield (f"{cell}: {rates['auto']:.1f} and {rates['plain']:.1f} tok/s, {found['ratio']:.3f} "
                   f"({min(found['ratios']):.3f} to {max(found['ratios']):.3f}){_to_the_end(found)}")
        elif "lines" in found:
            yield (f"{cell}: {found['listed_bytes'] / 1e9:.3f} GB listed, NVML sees "
                   f"{found['device_bytes_at_start'] / 1e9:.3f} GB at the start and "
                   f"{found['device_bytes_at_end'] / 1e9:.3f} GB at the end")
            for line in found["lines"]:
                yield f"  {line['owner']:9} {line['name']}: {line['bytes'] / 1e6:.1f} MB"
