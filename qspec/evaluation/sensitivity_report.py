"""A sensitivity measurement for people (a table and a plot) and for programs (CSV and JSON)."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qspec.errors import InvalidInput
from qspec.evaluation.agreement import Agreement
from qspec.evaluation.sensitivity import ModuleCost, Sensitivity

_HEADINGS = ("module", "matrices", "acceptance lost", "greedy lost", "KL, nats", "MB saved")
_MOST_BARS = 40
"""More modules than this are no longer read off a plot."""


def sensitivity_table(found: Sensitivity) -> str:
    """Every module, the largest loss first, and the whole model with and without overrides."""
    rows = [_HEADINGS, *(_row(cost.glob, str(cost.matrices), cost.agreement, cost.bytes_saved) for cost in found.costs)]
    saved, matrices = sum(cost.bytes_saved for cost in found.costs), sum(cost.matrices for cost in found.costs)
    left = sum(cost.matrices for cost in found.worst)
    rows.append(_row("all of them", str(matrices), found.whole, saved))
    rows.append(_row("all but the overrides", str(matrices - left), found.relieved, saved - found.bytes_given_up))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([*lines[:-2], "", *lines[-2:]])


def override_line(found: Sensitivity) -> str:
    """What to leave to the verifier's method, and what that was measured to win."""
    return (
        f"{found.overrides}: acceptance {found.whole.acceptance:.3f} -> {found.relieved.acceptance:.3f}, greedy "
        f"{found.whole.greedy:.3f} -> {found.relieved.greedy:.3f}, for {found.bytes_given_up / 1e6:.1f} MB more a pass"
    )


def write_sensitivity(found: Sensitivity, settings: dict[str, Any], directory: Path) -> list[Path]:
    """Write ``sensitivity.csv`` and ``sensitivity.json``, which holds ``settings`` too; returns the files.

    ``InvalidInput`` when the directory cannot be written.
    """
    records = [_record(cost) for cost in found.costs]
    table, record = directory / "sensitivity.csv", directory / "sensitivity.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        whole = {"method": found.method, "against": found.against, **_figures(found.whole)}
        content = {
            "settings": settings,
            "modules": records,
            "whole": whole,
            "overrides": {"value": found.overrides, "bytes_given_up": found.bytes_given_up, **_figures(found.relieved)},
        }
        record.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise InvalidInput.field("--output", f"{directory} cannot be written ({error.strerror or error})") from error
    return [table, record]


def require_plotting() -> None:
    """``InvalidInput`` naming the package that draws when it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput.field("--output", "the plot needs matplotlib; pip install matplotlib, or give --no-plot")


def draw_sensitivity(found: Sensitivity, title: str, path: Path) -> None:
    """Write a PNG with the loss of acceptance and of greedy agreement of the modules that lose most."""
    from matplotlib.figure import Figure

    shown = found.costs[:_MOST_BARS]
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for offset, name, colour, losses in (
        (-0.2, "acceptance at temperature 1", "#3b6fb6", [1 - cost.agreement.acceptance for cost in shown]),
        (0.2, "greedy agreement", "#d98c3f", [1 - cost.agreement.greedy for cost in shown]),
    ):
        axes.barh([index + offset for index in range(len(shown))], losses, height=0.4, color=colour, label=name)
    axes.set_yticks(range(len(shown)), [cost.glob for cost in shown])
    axes.invert_yaxis()
    more = f" (of {len(found.costs)} modules, the first {len(shown)})" if len(shown) < len(found.costs) else ""
    axes.set_xlabel(f"lost by this module alone{more}")
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _row(name: str, matrices: str, agreement: Agreement, bytes_saved: int) -> Sequence[str]:
    return (
        name, matrices, f"{1 - agreement.acceptance:.4f}", f"{1 - agreement.greedy:.4f}", f"{agreement.divergence:.5f}",
        f"{bytes_saved / 1e6:.2f}",
    )


def _record(cost: ModuleCost) -> dict[str, Any]:
    return {"module": cost.glob, "matrices": cost.matrices, **_figures(cost.agreement), "bytes_saved": cost.bytes_saved}


def _figures(agreement: Agreement) -> dict[str, Any]:
    return {
        "acceptance_lost": 1 - agreement.acceptance,
        "greedy_lost": 1 - agreement.greedy,
        "kl_nats": agreement.divergence,
        "positions": agreement.positions,
    }
