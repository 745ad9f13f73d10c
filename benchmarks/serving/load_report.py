"""The load curve as a table and as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.report import Verdict
from benchmarks.serving.load_figures import Comparison, LoadPoint
from benchmarks.simulation import Latency
from benchmarks.statistics import CONFIDENCE, Interval

LEAST_SHARE = 0.97
"""What ``auto`` has to reach, in units of the better of the others, at every load."""


def render_points(points: Mapping[float, Mapping[str, LoadPoint]], saturation: float) -> str:
    """A line for each load and configuration; latencies are p50 / p95 / p99."""
    lines = [
        f"saturation: {saturation:.2f} requests/s; loads are shares of it; latencies are p50 / p95 / p99 over requests",
        f"{'load':>5} {'req/s':>6}  {'':8} {'blocks':>6} {'requests':>8}  "
        f"{f'tokens/s [{CONFIDENCE:.0%}]':>22}  {'first token, ms':>20}  {'per token, ms':>17}  "
        f"{'between messages, ms':>20}  {'end to end, ms':>21}  {'tok/round':>9} {'stood':>6}  {'generator':>9}",
    ]
    for load, configurations in points.items():
        for name, point in configurations.items():
            stood = f"{point.accepted / point.drafted:.0%}" if point.drafted else "–"
            lines.append(
                f"{load:5g} {load * saturation:6.2f}  {name:8} {point.blocks:6} {point.requests:8}  "
                f"{interval_text(point.throughput, 1):>22}  {_latency(point.first_token):>20}  "
                f"{_latency(point.per_token, 1):>17}  {_latency(point.gap):>20}  {_latency(point.end_to_end):>21}  "
                f"{point.tokens_per_round:9.2f} {stood:>6}  {point.generator_share:9.1%}")
    latest = max((point.latest_s for one in points.values() for point in one.values()), default=0.0)
    lines.append(f"generator: share of one core; the latest request was sent {1000 * latest:.0f} ms after its time")
    return "\n".join(lines)


def render_comparisons(comparisons: Mapping[float, Comparison]) -> str:
    """``auto`` against the better of the others, by load; above 1 it is better."""
    lines = [f"auto / better of the others [{CONFIDENCE:.0%}]: throughput, end-to-end speed, speed per token"]
    for load, one in comparisons.items():
        figures = ("throughput", "end_to_end", "per_token")
        cells = [f"{interval_text(getattr(one, name), 3):>22} ({one.better[name]})" for name in figures]
        lines.append(f"{load:5g}  {'  '.join(cells)}")
    return "\n".join(lines)


def load_verdicts(comparisons: Mapping[float, Comparison], differing: int, requests: int) -> Sequence[Verdict]:
    """The targets, each with what was measured."""
    return [
        *(
            Verdict(
                target=f"auto at least {LEAST_SHARE}x the better of the others, load {load:g}, {what}",
                met=ratio.median >= LEAST_SHARE, measured=interval_text(ratio, 3))
            for load, one in comparisons.items()
            for what, ratio in (("throughput", one.throughput), ("end to end", one.end_to_end))
        ),
        Verdict(
            target="the same texts in every configuration under load", met=not differing,
            measured=f"{differing} of {requests} differ"),
    ]


def interval_text(interval: Interval, digits: int) -> str:
    """An interval for a table."""
    return f"{interval.median:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _latency(latency: Latency, digits: int = 0) -> str:
    return " / ".join(f"{1000 * seconds:.{digits}f}" for seconds in (latency.p50, latency.p95, latency.p99))
