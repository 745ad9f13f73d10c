"""A comparison as a table, as a JSON object and as a chart."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparison import Comparison, Kind, Measurement

_COLOURS = {Kind.AUTOREGRESSIVE: "#7f8c9b", Kind.SPECULATIVE: "#c98b3c", Kind.QSPEC: "#2f6db5"}
_HEADINGS = ("way", "tokens/s", "[quartiles]", "x", "accepted", "tokens/round", "tokens", "load s")


def table(comparison: Comparison) -> str:
    """One line per way; ``x`` is its median rate over that of plain decoding by the chosen verifier."""
    baseline = comparison.measurements[0]
    rows = [_HEADINGS, *(_row(measurement, baseline) for measurement in comparison.measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines, *(f"{name}: not here ({why})" for name, why in comparison.refused.items())])


def _row(measurement: Measurement, baseline: Measurement) -> tuple[str, ...]:
    figures = figures_of(measurement, baseline)
    accepted = figures["acceptance"]
    return (
        measurement.way.name,
        f"{figures['tokens_per_s']['median']:.1f}",
        f"[{figures['tokens_per_s']['lower_quartile']:.1f}, {figures['tokens_per_s']['upper_quartile']:.1f}]",
        f"{figures['speed_up']:.2f}",
        "-" if accepted is None else f"{accepted:.1%}",
        f"{figures['tokens_per_round']:.2f}",
        str(figures["tokens"]),
        f"{figures['load_s']:.1f}",
    )


def figures_of(measurement: Measurement, baseline: Measurement) -> dict[str, Any]:
    """What is known about one way, JSON-able."""
    way = measurement.way
    return {
        "kind": way.kind.value,
        "draft_model": None if way.draft_method is None else way.models.draft,
        "verify_model": way.models.verify,
        "draft_method": way.draft_method,
        "verify_method": way.verify_method,
        "tokens_per_s": asdict(measurement.rates),
        "speed_up": measurement.rates.median / baseline.rates.median,
        "acceptance": measurement.accepted / measurement.drafted if measurement.drafted else None,
        "tokens_per_round": sum(measurement.tokens) / measurement.rounds,
        "tokens": sum(measurement.tokens),
        "seconds": list(measurement.seconds),
        "load_s": measurement.load_s,
    }


def draw_chart(comparison: Comparison, title: str, path: Path) -> None:
    """Write a PNG with one bar per way: median tokens per second, quartiles, acceptance. ``ImportError`` without
    matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    measurements = comparison.measurements
    baseline = measurements[0]
    figure = Figure(figsize=(9, 1.6 + 0.5 * len(measurements)), layout="constrained")
    axes = figure.subplots()
    rates = [measurement.rates for measurement in measurements]
    medians = [rate.median for rate in rates]
    errors = [
        [rate.median - rate.lower_quartile for rate in rates], [rate.upper_quartile - rate.median for rate in rates]]
    names = [measurement.way.name for measurement in measurements]
    colours = [_COLOURS[measurement.way.kind] for measurement in measurements]
    axes.barh(range(len(names)), medians, xerr=errors, color=colours, capsize=3, height=0.65)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(medians[0], color="#444444", linewidth=0.8, linestyle=":")
    room = max(rate.upper_quartile for rate in rates)
    for index, (measurement, rate) in enumerate(zip(measurements, rates, strict=True)):
        figures = figures_of(measurement, baseline)
        accepted = "" if figures["acceptance"] is None else f", {figures['acceptance']:.0%} accepted"
        label = f"{rate.median:.1f} ({figures['speed_up']:.2f}x{accepted})"
        axes.text(rate.upper_quartile + 0.015 * room, index, label, va="center", fontsize=9)
    axes.set_xlim(0, 1.4 * room)
    axes.set_xlabel("tokens per second: median of all calls, quartiles")
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    kinds = dict.fromkeys(measurement.way.kind for measurement in measurements)
    axes.legend(handles=[Patch(color=_COLOURS[kind], label=kind.value) for kind in kinds], fontsize=9, frameon=False,
                loc="upper center", bbox_to_anchor=(0.5, -0.18 - 0.3 / len(names)), ncols=len(kinds))
    figure.savefig(path, dpi=150)
