"""The load curve as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.serving.load_figures import Comparison, LoadPoint
from benchmarks.serving.load_report import LEAST_SHARE
from benchmarks.statistics import CONFIDENCE, Interval

_COLOURS = ("#1b1b1b", "#d1661f", "#2f6db5")
_MARKERS = ("o", "s", "^")
_LATENCIES = (
    ("first_token", "median_first_token", "time to first token", "s"),
    ("per_token", "median_per_token", "time per token after the first", "ms"),
    ("gap", None, "between two messages of a stream", "ms"),
    ("end_to_end", "median_end_to_end", "end-to-end latency", "s"),
)


def plot_loads(
    points: Mapping[float, Mapping[str, LoadPoint]], comparisons: Mapping[float, Comparison], saturation: float,
    title: str, path: Path,
) -> None:
    """Throughput, four latencies and ``auto``'s ratio over the load, a line for each configuration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    loads = list(points)
    names = list(next(iter(points.values())))
    spacing = 0.012 * (max(loads) - min(loads) or 1.0)
    for index, name in enumerate(names):
        own = [points[load][name] for load in loads]
        places = [load + (index - 1) * spacing for load in loads]  # side by side, so that no bar hides another
        style = {"color": _COLOURS[index], "marker": _MARKERS[index], "markersize": 5, "linewidth": 1.6}
        rates = [point.throughput for point in own]
        axes[0].errorbar(places, [rate.median for rate in rates], yerr=_bars(rates), capsize=3, label=name, **style)
        for axis, (latency, median, _, unit) in zip(axes[1:5], _LATENCIES, strict=True):
            scale = 1000.0 if unit == "ms" else 1.0
            found = [getattr(point, latency) for point in own]
            axis.plot(places, [scale * one.p50 for one in found], label=f"{name}: p50", **style)
            if median is not None:
                bars = [[scale * one for one in side] for side in _bars([getattr(point, median) for point in own])]
                axis.errorbar(places, [scale * one.p50 for one in found], yerr=bars, fmt="none", capsize=3,
                              color=_COLOURS[index])
            faint = {**style, "markersize": 3, "linewidth": 1.0}
            axis.plot(places, [scale * one.p95 for one in found], linestyle="--", label=f"{name}: p95", **faint)
            axis.plot(places, [scale * one.p99 for one in found], linestyle=":", label=f"{name}: p99", **faint)
    for axis, (_, _, what, unit) in zip(axes[1:5], _LATENCIES, strict=True):
        axis.set(title=f"{what}, {unit}", yscale="log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes[0].set(title="throughput, tokens/s", ylim=(0, None))
    _plot_ratios(axes[5], comparisons)
    for axis in axes:
        axis.set_xlabel(f"arrivals as a share of the saturation ({saturation:.2f} requests/s)")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title="latencies", fontsize=9)
    figure.suptitle(f"{title}\nbars: {CONFIDENCE:.0%} bootstrap intervals over blocks and the requests in them")
    figure.savefig(path, dpi=110)


def _plot_ratios(axis: object, comparisons: Mapping[float, Comparison]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    spacing = 0.012 * (max(comparisons) - min(comparisons) or 1.0)
    kinds = (("throughput", "throughput", "o"), ("end_to_end", "end-to-end speed", "s"),
             ("per_token", "speed per token", "^"))
    for index, (name, label, marker) in enumerate(kinds):
        ratios = [getattr(one, name) for one in comparisons.values()]
        axis.errorbar(
            [load + (index - 1) * spacing for load in comparisons], [ratio.median for ratio in ratios],
            yerr=_bars(ratios), fmt=marker, markersize=5, capsize=3, label=label, color=_COLOURS[index])
    axis.axhline(1.0, color="#888888", linewidth=0.8)
    axis.axhline(LEAST_SHARE, color="#aa2222", linewidth=1.0, linestyle="--", label=f"{LEAST_SHARE}: the target")
    axis.set(title="auto / better of the others (above 1: auto is better)")
    axis.legend(fontsize=8)


def _bars(intervals: list[Interval]) -> list[list[float]]:
    """Lengths of error bars; a percentile interval need not hold the value itself."""
    return [[max(one.median - one.low, 0.0) for one in intervals], [max(one.high - one.median, 0.0)
                                                                   for one in intervals]]
