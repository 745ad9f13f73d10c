"""What the cells of ``decode_cells`` say: c, v, acceptance, what these promise, and what came of it.

*c* is a draft step and *v* a verify pass, each over a plain verifier's step of the same batch and way of sampling.
With *alpha* the chance that a draft stands where those before it do, k drafts make
E = (1 - alpha^(k+1)) / (1 - alpha) tokens a round, and the speed-up promised is E / (k·c + v). The measured speed-up
over it tells what rounds lose outside of these calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.decode_cells import AGAIN, AUTO
from qspec.draft_length import expected_tokens

Cell = Mapping[str, Any]
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
"""For which speed-ups are told: a widened model's acceptance is its own."""


def plain_cells(cells: Mapping[str, Cell], sampling: str, batch: int, prefix: str = "") -> list[Cell]:
    """Plain decoding before and after the drafts; empty where it was not measured."""
    name = f"{prefix}{sampling} batch {batch} k 0"
    return [cells[each] for each in (name, f"{name} {AGAIN}") if each in cells]


def plain_rate(cells: Mapping[str, Cell], sampling: str, batch: int, prefix: str = "") -> float | None:
    """Tokens per second of plain decoding."""
    found = plain_cells(cells, sampling, batch, prefix)
    return statistics.fmean(cell["tokens_per_s"] for cell in found) if found else None


def cost_rows(
    cells: Mapping[str, Cell], prefix: str = "", plain_prefix: str | None = None
) -> Iterator[dict[str, Any]]:
    """Each cell named ``prefix``… with c, v, and the measured and the promised speed-up over the plain decoding of
    cells named ``plain_prefix``… (None: the same).
    """
    for name, cell in cells.items():
        if not name.startswith(prefix) or "tokens_per_round" not in cell:
            continue
        plain = plain_cells(cells, cell["sampling"], cell["batch"], prefix if plain_prefix is None else plain_prefix)
        if not plain or not name.removeprefix(prefix).startswith(cell["sampling"]):
            continue
        rate, step_s = (
            statistics.fmean(each[figure] for each in plain) for figure in ("tokens_per_s", "verify_s"))
        c = None if cell["draft_step_s"] is None else cell["draft_step_s"] / step_s
        v = cell["verify_s"] / step_s
        row = {**cell, "name": name, "c": c, "v": v, "plain_s": step_s, "speed_up": cell["tokens_per_s"] / rate,
               "median_speed_up": _paired(cell, plain)}
        yield {**row, "promised": _promised(row), "made_good": _made_good(row)}


def speed_up(alpha: float, length: int, c: float, v: float) -> float:
    """What the formula promises."""
    return expected_tokens(alpha, length) / (length * c + v)


def acceptance_grid(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The speed-up promised for some acceptances, by way of sampling, batch and draft length, from measured c and v."""
    return {
        f"{row['sampling']} batch {row['batch']} k {row['k']}": {
            f"{alpha:g}": speed_up(alpha, row["k"], row["c"] or 0.0, row["v"]) for alpha in ACCEPTANCES}
        for row in rows if row["k"] not in (0, AUTO) and row["c"] is not None
    }


def _paired(cell: Cell, plain: list[Cell]) -> float:
    """Median over the runs of the speed-up over the same texts' plain decoding."""
    ratios: list[float] = [
        rate / statistics.fmean(each["rates"][index] for each in plain) for index, rate in enumerate(cell["rates"])]
    return statistics.median(ratios)


def _promised(row: Mapping[str, Any]) -> float | None:
    """Of a fixed draft length; the controller's vary."""
    if row["k"] in (0, AUTO) or row["alpha"] is None or row["c"] is None:
        return None
    return speed_up(row["alpha"], row["k"], row["c"], row["v"])


def _made_good(row: Mapping[str, Any]) -> float | None:
    promised = _promised(row)
    return None if promised is None else float(row["speed_up"]) / promised
