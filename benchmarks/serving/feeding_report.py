"""The coordinator's costs as a table."""

from __future__ import annotations

from benchmarks.report import Verdict
from benchmarks.serving.feeding import Feeding

LEAST_STREAMS = 64
"""Four times the slots that a stack has by default."""


def render_feeding(feeding: Feeding) -> str:
    """Two tables: what streaming costs, and how streams are fed."""
    lines = [
        "the coordinator on workers that answer at once; CPU of its whole process, RPC to the workers included",
        f"{'streams':>7}  {'k':>2} {'tokens/s':>9} {'µs/token':>9} {'µs/message':>11} {'cores':>6}  "
        f"{'generator, cores':>16}",
    ]
    for cost in feeding.costs:
        lines.append(
            f"{cost.streams:7}  {cost.draft_length:2} {cost.tokens / cost.seconds:9.0f} "
            f"{1e6 * cost.cpu_per_token_s:9.1f} {1e6 * cost.cpu_per_message_s:11.1f} "
            f"{cost.coordinator_cpu_s / cost.seconds:6.2f}  {cost.generator_cpu_s / cost.seconds:16.2f}")
    lines += [
        f"the coordinator on workers whose verify pass takes {1000 * feeding.pass_s:g} ms, k = 0",
        f"{'streams':>7} {'tokens/s':>9}  {'between messages, ms, p50 / p95 / p99':>38} {'cores':>6} "
        f"{'generator, cores':>16} {'scheduling':>11} {'RPC':>6}",
    ]
    for one in feeding.fed:
        gap = f"{1000 * one.gap.p50:.1f} / {1000 * one.gap.p95:.1f} / {1000 * one.gap.p99:.1f}"
        lines.append(
            f"{one.streams:7} {one.throughput:9.0f}  {gap:>38} {one.coordinator_cores:6.2f} "
            f"{one.generator_cores:16.2f} {one.shares.scheduling:11.1%} {one.shares.rpc:6.1%}")
    more = "" if feeding.bound_reached else ", and more were not tried"
    lines.append(
        f"fed with a p99 of at most {1000 * feeding.gap_bound_s:g} ms: {feeding.most_streams} streams{more}")
    return "\n".join(lines)


def feeding_verdicts(feeding: Feeding) -> list[Verdict]:
    """A coordinator feeds many times the streams that a stack runs by default."""
    enough = feeding.most_streams >= LEAST_STREAMS
    return [Verdict(
        target=f"one coordinator feeds at least {LEAST_STREAMS} streams within {1000 * feeding.gap_bound_s:g} ms (p99)",
        met=enough if enough or feeding.bound_reached else None, measured=f"{feeding.most_streams} streams")]
