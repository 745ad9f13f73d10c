"""What metrics cost a round: ``python -m benchmarks.metrics_cost``; the last line is JSON.

The calls that the engine makes for a round of some sequences, on their own, and a scrape of everything. Set it against
rounds of milliseconds. Processor time, and the least of some repeats: what others do on the machine is none of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from prometheus_client import generate_latest

from coordinator.metrics.endpoint import metrics_registry
from coordinator.metrics.engine_metrics import EngineMetrics
from coordinator.request_times import RequestTimes
from coordinator.serving import Serving
from qspec.cost_table import CalibratedCosts, CostTable
from qspec.draft_policy import DraftLengthPolicy
from qspec.interfaces import StageTimings
from qspec.round_report import RoundReport

REPEATS = 7
ROUNDS = 2000


def nanoseconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Processor time, the least of some repeats."""
    taken = []
    for _ in range(REPEATS):
        started = time.thread_time_ns()
        for _ in range(calls):
            call()
        taken.append((time.thread_time_ns() - started) / calls)
    return min(taken)


def policy_with_costs() -> DraftLengthPolicy:
    """One that knows what calls cost."""
    policy = DraftLengthPolicy(8)
    policy.costs = CostTable(CalibratedCosts(verify=((1, 0.008), (8, 0.012)), draft_step=((1, 0.004),)))
    return policy


def report_of(sequences: int) -> RoundReport:
    """A round in which each of ``sequences`` drafted four tokens and three stood; making one costs something, too."""
    timings = StageTimings(prepare_ns=50_000, forward_ns=4_000_000, sample_ns=200_000, total_ns=4_300_000)
    return RoundReport(
        seconds=0.02, draft_s=0.005, draft_rpc_s=7e-4, draft_timings=timings, verify_s=0.012, verify_rpc_s=7.7e-3,
        verify_timings=timings, outcomes=((4, 3),) * sequences, context=200 * sequences, prefill_tokens=0)


def round_cost(sequences: int) -> float:
    """Nanoseconds that a round of ``sequences`` texts pays."""
    metrics, policy, times = EngineMetrics(), policy_with_costs(), RequestTimes()
    times.begin()
    times.tokens_came(time.perf_counter())

    def one_round() -> None:
        metrics.round_ended(report_of(sequences), policy)
        for _ in range(sequences):
            times.tokens_came(times.queued)
            metrics.tokens_came(times, 4, 100)

    return nanoseconds_per_call(one_round, ROUNDS)


def main() -> None:
    """Print a table and a JSON line."""
    costs = {sequences: round_cost(sequences) for sequences in (1, 8, 64)}
    registry = metrics_registry(Serving(model="model"))
    scrape_ns = nanoseconds_per_call(lambda: generate_latest(registry), 20)
    for sequences, cost in costs.items():
        print(f"{sequences:>3} sequences: {cost / 1e3:8.2f} µs a round")
    print(f"one scrape:    {scrape_ns / 1e6:8.2f} ms")
    print(json.dumps({"round_ns": costs, "scrape_ns": scrape_ns}))


if __name__ == "__main__":
    main()
