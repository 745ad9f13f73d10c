"""What the sections of whole steps found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.decode_cells import AUTO
from benchmarks.gpu.decode_costs import ACCEPTANCES, acceptance_grid, cost_rows
from benchmarks.gpu.pairs_section import FP16, PAIRS, pair_prefix

Record = Mapping[str, Any]


def cells_table(name: str, record: Record) -> Iterator[str]:
    """A pair's cells, the formula's promises, and where the time goes.

    Shares of a pure read are told twice: of whole rounds, the host's time between two passes included, as ``verdicts``
    counts them, and of the verify calls alone.
    """
    about = record["about"]
    floor_s = about["step_bytes"] / about["read_bytes_per_s"]
    yield f"## {name}: {about.get('draft', 'no drafts')} → {about['verify']}, {about['step_bytes'] / 1e9:.2f} GB a step"
    yield ("| sampling | batch | k | tok/s | of a pure read | its calls alone | c | v | alpha | accepted | speed-up | "
           "promised | measured/promised | outside µs |")
    yield "|" + "---|" * 14
    rows = list(cost_rows(record["cells"]))
    for row in rows:
        shares = (f"{floor_s * row['tokens_per_s'] / row['batch']:.2f} | {floor_s / row['verify_s']:.2f}"
                  if row["k"] == 0 else " | ")
        yield (f"| {row['sampling']} | {row['batch']} | {row['k']} | {row['tokens_per_s']:.1f} | {shares} | "
               f"{_number(row['c'])} | {row['v']:.3f} | {_number(row['alpha'])} | {_number(row['accepted_share'])} | "
               f"{row['speed_up']:.3f} | {_number(row['promised'])} | {_number(row['made_good'])} | "
               f"{row['outside_s'] * 1e6:.0f} |")
    if grid := acceptance_grid(rows):
        yield "speed-up that the measured c and v promise, by alpha:"
        yield "| | " + " | ".join(f"{alpha:g}" for alpha in ACCEPTANCES) + " |"
        yield "|" + "---|" * (len(ACCEPTANCES) + 1)
        for cell, promises in grid.items():
            yield f"| {cell} | " + " | ".join(f"{value:.2f}" for value in promises.values()) + " |"
    for cell, found in record["cells"].items():
        if cell.startswith("profile"):
            parts = ", ".join(f"{kind} {us:.0f}" for kind, us in found["kernels_us"].items())
            yield (f"{cell}: a round of {found['round_us']:.0f} µs: {parts}; some kernel runs {found['busy_us']:.0f}, "
                   f"none {found['nothing_runs_us']:.0f}; {found['launches']:.0f} launches")


def pairs_table(name: str, record: Record) -> Iterator[str]:
    """Every pair against its own plain decoding and against fp16's."""
    cells = record["cells"]
    fp16 = {row["name"]: row for row in cost_rows(cells, f"{FP16}: ")}
    yield f"## {name}"
    yield "| pair | batch | k | tok/s | c | v | alpha | promised | speed-up | over plain fp16 | |"
    yield "|" + "---|" * 11
    for verify, drafts in PAIRS.items():
        plain = {row["name"]: row for row in cost_rows(cells, f"{verify}: ")}
        for row in [*plain.values(), *(
                each for draft in drafts for each in cost_rows(cells, pair_prefix(draft, verify), f"{verify}: "))]:
            pair = verify if row["k"] == 0 else row["name"].partition(": ")[0]
            base = fp16.get(f"{FP16}: {row['sampling']} batch {row['batch']} k 0")
            over = None if base is None else row["tokens_per_s"] / base["tokens_per_s"]
            verdict = "" if row["k"] in (0, AUTO) else "gain" if row["speed_up"] > 1 else "loss"
            yield (f"| {pair} | {row['batch']} | {row['k']} | {row['tokens_per_s']:.1f} | {_number(row['c'])} | "
                   f"{row['v']:.3f} | {_number(row['alpha'])} | {_number(row['promised'])} | {row['speed_up']:.3f} | "
                   f"{_number(over)} | {verdict} |")


def rates_table(name: str, cells: Mapping[str, Any]) -> Iterator[str]:
    """Tokens per second alone."""
    yield f"## {name}"
    for cell, found in cells.items():
        yield f"{cell}: {found['tokens_per_s']:.1f} tok/s"


def missing_lines(records: Mapping[str, Record]) -> Iterator[str]:
    """What failed, and what there was no time for."""
    for name, record in records.items():
        for cell, why in record["failed"].items():
            yield f"FAILED {name}, {cell}: {why}"
        if record["left"]:
            yield f"left out of {name}: {_listed(record['left'])}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
