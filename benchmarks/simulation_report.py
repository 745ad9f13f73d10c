"""What ``python -m benchmarks.simulate`` found, as a table and as a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulation import Latency, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One policy under one load."""

    load: float
    """Arrivals per second, or clients."""
    policy: str
    """``auto`` or ``k = N``."""
    outcome: Outcome


def render_rows(rows: Sequence[Row], load_name: str) -> str:
    """A table: throughput against the best fixed draft length, and latencies in milliseconds (p50 / p95 / p99)."""
    lines = [
        f"{load_name:>10}  {'policy':7} {'tokens/s':>9} {'of best':>8} {'drafts':>7} {'stood':>6}  "
        f"{'first token':>22} {'between messages':>20} {'per token':>20} {'end to end':>22}"
    ]
    for row in rows:
        best = max(
            other.outcome.throughput for other in rows if other.load == row.load and other.policy != "auto")
        one = row.outcome
        stood = f"{one.accepted / one.drafted:.0%}" if one.drafted else "–"
        lines.append(
            f"{row.load:10g}  {row.policy:7} {one.throughput:9.1f} {one.throughput / best:8.3f} "
            f"{one.drafted / max(sum(one.rounds_per_draft_length), 1):7.2f} {stood:>6}  "
            f"{_latency(one.first_token):>22} {_latency(one.gap):>20} {_latency(one.inter_token, 1):>20} "
            f"{_latency(one.end_to_end):>22}")
    return "\n".join(lines)


def _latency(latency: Latency, digits: int = 0) -> str:
    return " / ".join(f"{1000 * seconds:.{digits}f}" for seconds in (latency.p50, latency.p95, latency.p99))


def plotting_possible() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_rows(rows: Sequence[Row], load_name: str, path: Path) -> None:
    """Throughput and the median and 95th percentile of three latencies over the load, a line for each policy.

    Needs matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    panels = ("throughput, tokens/s", "time to first token, s", "time per token, s", "end to end, s")
    for policy in dict.fromkeys(row.policy for row in rows):
        own = [row for row in rows if row.policy == policy]
        loads = [row.load for row in own]
        style = {"linewidth": 2.5, "color": "black", "zorder": 3} if policy == "auto" else {"linewidth": 1.2}
        (line,) = axes[0].plot(loads, [row.outcome.throughput for row in own], marker="o", label=policy, **style)
        for axis, name in zip(axes[1:], ("first_token", "inter_token", "end_to_end"), strict=True):
            latencies = [getattr(row.outcome, name) for row in own]
            axis.plot(loads, [latency.p50 for latency in latencies], marker="o", **{**style, "color": line.get_color()})
            axis.plot(
                loads, [latency.p95 for latency in latencies], linestyle=":", **{**style, "color": line.get_color()})
    for axis, title in zip(axes, panels, strict=True):
        axis.set(title=title, xlabel=load_name, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Simulated; latencies: median, dotted 95th percentile")
    figure.savefig(path, dpi=120)
