"""What happened in one engine, counted in plain numbers; ``coordinator.metrics.collector`` makes metrics of them.

The engine's thread writes them and any thread reads. One call a round and one a sequence; what that costs is measured
by ``benchmarks/metrics_cost.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.metrics.histogram import Histogram
from coordinator.metrics.plain_decoding import PlainDecoding
from coordinator.request_times import RequestTimes
from qspec.draft_policy import DraftLengthPolicy
from qspec.interfaces import StageTimings
from qspec.round_report import RoundReport

WAITS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0,
)
"""Seconds that a request waits: for its slot, its prefill, its first token. vLLM's buckets, as below."""
CALLS = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
    2.5, 5.0, 10.0,
)
"""Seconds between tokens, and of rounds and calls."""
OVERHEADS = (
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 5.0,
)
"""Seconds that a call takes besides the worker's own."""
LONGEST_DRAFT = 64
"""Drafts longer than this are counted as of this length."""


@dataclass(slots=True)
class StageSeconds:
    """Where a worker's time went, in nanoseconds."""

    prepare_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0

    def add(self, timings: StageTimings) -> None:
        """Take one answer in."""
        self.prepare_ns += timings.prepare_ns
        self.forward_ns += timings.forward_ns
        self.sample_ns += timings.sample_ns


@dataclass(slots=True, eq=False)
class EngineMetrics:
    """See the module."""

    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(WAITS))
    inter_token: Histogram = field(default_factory=lambda: Histogram(CALLS))
    queue_time: Histogram = field(default_factory=lambda: Histogram(WAITS))
    prefill_time: Histogram = field(default_factory=lambda: Histogram(WAITS))
    round_time: Histogram = field(default_factory=lambda: Histogram(CALLS))
    draft_time: Histogram = field(default_factory=lambda: Histogram(CALLS))
    verify_time: Histogram = field(default_factory=lambda: Histogram(CALLS))
    rpc_time: dict[str, Histogram] = field(
        default_factory=lambda: {worker: Histogram(OVERHEADS) for worker in ("verifier", "drafter")})
    """By worker."""
    stages: dict[str, StageSeconds] = field(
        default_factory=lambda: {worker: StageSeconds() for worker in ("verifier", "drafter")})
    """By worker."""
    plain: PlainDecoding = field(default_factory=PlainDecoding)
    prompt_tokens: int = 0
    """Of requests that got their first token."""
    prefix_queries: int = 0
    """Of these prompts, the tokens whose KV entries the verifier looked for."""
    prefix_hits: int = 0
    """Tokens whose entries it had."""
    generation_tokens: int = 0
    prefill_tokens: int = 0
    """Entered into the KV cache, those that were computed again included."""
    _rounds_by_drafted: list[int] = field(default_factory=lambda: [0] * (LONGEST_DRAFT + 1))
    _rounds_by_accepted: list[int] = field(default_factory=lambda: [0] * (LONGEST_DRAFT + 1))

    # ---- the engine's thread ----------------------------------------------------------------------------------------

    def round_ended(self, report: RoundReport, policy: DraftLengthPolicy) -> None:
        """Count one round."""
        self.round_time.observe(report.seconds)
        self.verify_time.observe(report.verify_s)
        self.rpc_time["verifier"].observe(report.verify_rpc_s)
        self.stages["verifier"].add(report.verify_timings)
        if report.draft_timings is not None:
            self.draft_time.observe(report.draft_s)
            self.rpc_time["drafter"].observe(report.draft_rpc_s)
            self.stages["drafter"].add(report.draft_timings)
        self.prefill_tokens += report.prefill_tokens
        by_drafted, by_accepted = self._rounds_by_drafted, self._rounds_by_accepted
        for drafted, accepted in report.outcomes:
            by_drafted[min(drafted, LONGEST_DRAFT)] += 1
            by_accepted[min(accepted, LONGEST_DRAFT)] += 1
        self.plain.observe(report, policy)

    def tokens_came(self, times: RequestTimes, tokens: int, prompt_tokens: int) -> None:
        """Count what a round gave to one text."""
        self.generation_tokens += tokens
        if times.gap_s is not None:
            if tokens:
                self.inter_token.observe(times.gap_s / tokens, tokens)
            return
        self.prompt_tokens += prompt_tokens
        self.queue_time.observe(times.queue_s)
        if times.time_to_first_token_s is not None and times.prefill_s is not None:
            self.time_to_first_token.observe(times.time_to_first_token_s)
            self.prefill_time.observe(times.prefill_s)

    def prefix_looked_up(self, prompt_tokens: int, found: int) -> None:
        """The verifier looked for a prompt's entries, and had those of its first ``found`` tokens."""
        self.prefix_queries += prompt_tokens
        self.prefix_hits += found

    # ---- any thread -------------------------------------------------------------------------------------------------

    def rounds_by_draft_length(self, longest: int) -> list[int]:
        """Sequences' rounds by the number of tokens drafted, from 0 to ``longest``."""
        return _up_to(self._rounds_by_drafted, longest)

    def accepted_per_position(self, longest: int) -> list[int]:
        """How often the draft in each position stood."""
        counts = _up_to(self._rounds_by_accepted, longest)
        return [sum(counts[position + 1 :]) for position in range(longest)]


def _up_to(counts: list[int], longest: int) -> list[int]:
    """The counts from 0 to ``longest``; those above, of a verifier that is gone, are in the last."""
    counts, longest = list(counts), min(longest, LONGEST_DRAFT)
    return [*counts[:longest], sum(counts[longest:])]
