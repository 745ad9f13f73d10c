"""How much faster decoding is than it would be without drafts: what was taken, and what plain rounds would have taken.

A round that gave n tokens to B sequences would have been n / B rounds of one token each, each with a verify pass over B
rows, whose price the cost table knows (measured at warm-up and corrected since), and with what a round takes besides
its two calls. Rounds that prefill are left out: a prompt costs the same either way. A round without drafts is a plain
one, and is its own estimate.
"""

from __future__ import annotations

from qspec.draft_policy import DraftLengthPolicy
from qspec.round_report import RoundReport

_FORGET = 0.99
"""What the recent figures keep with every round: about the last hundred count."""


class PlainDecoding:
    """Seconds spent decoding and the estimate without drafts. Used by one thread, read by any."""

    def __init__(self) -> None:
        self.actual_s = 0.0
        """Seconds of the rounds that count."""
        self.plain_s = 0.0
        """Seconds that plain decoding would have taken for their tokens."""
        self._recent_actual_s = self._recent_plain_s = 0.0
        self._passes: dict[int, float] = {}  # seconds of a plain pass by sequences: a look-up costs microseconds

    @property
    def speedup(self) -> float:
        """Of the last hundred rounds or so; 1 before there was one."""
        return self._recent_plain_s / self._recent_actual_s if self._recent_actual_s > 0.0 else 1.0

    def forget_costs(self) -> None:
        """Ask the cost table again; to be called every second or so."""
        self._passes.clear()

    def observe(self, report: RoundReport, policy: DraftLengthPolicy) -> None:
        """Take a round in."""
        sequences = len(report.outcomes)
        if not sequences or report.prefill_tokens:
            return
        plain_s = report.seconds
        if report.draft_timings is not None:
            if not policy.costs.known:
                return
            pass_s = self._passes.get(sequences)
            if pass_s is None:
                pass_s = self._passes[sequences] = policy.costs.verify_seconds(sequences)
            besides_s = max(report.seconds - report.draft_s - report.verify_s, 0.0)
            tokens = sequences + sum([accepted for _, accepted in report.outcomes])
            plain_s = tokens / sequences * (pass_s + report.context * policy.costs.verify_context_s + besides_s)
        self.actual_s += report.seconds
        self.plain_s += plain_s
        self._recent_actual_s = _FORGET * self._recent_actual_s + report.seconds
        self._recent_plain_s = _FORGET * self._recent_plain_s + plain_s
