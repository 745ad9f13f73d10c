"""The round in progress: what came of its calls so far, and what they took."""

from __future__ import annotations

from dataclasses import dataclass, field

from qspec.draft_call import sequences_fed
from qspec.interfaces import DraftAnswer, StageTimings, VerifyAnswer
from qspec.round_batch import BatchRows
from qspec.round_report import RoundReport


@dataclass(slots=True)
class OpenRound:
    """One round, from the choice of its draft lengths to its commits; times in seconds."""

    number: int
    started: float
    drafts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Drafted tokens by slot."""
    confidences: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Confidences of their distributions by slot, where they may end early."""
    fed: list[int] = field(default_factory=list)
    """How many sequences each step of the draft call fed; empty without an answer."""
    draft_s: float = 0.0
    draft_timings: StageTimings | None = None
    verify_s: float = 0.0
    verify_timings: StageTimings = field(default_factory=StageTimings)
    rpc_s: float = 0.0
    """Of both calls, less what the workers say that they worked."""
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    """Drafted and accepted tokens of each sequence that was decided on."""

    def drafted(self, answer: DraftAnswer, seconds: float) -> None:
        """The drafter has answered."""
        self.drafts = {result.slot: result.draft_tokens for result in answer.results}
        self.confidences = {result.slot: result.confidences for result in answer.results}
        self.fed = sequences_fed(answer)
        self.draft_s, self.draft_timings = seconds, answer.timings
        self.rpc_s += max(seconds - answer.timings.total_ns * 1e-9, 0.0)

    def verified(self, answer: VerifyAnswer, seconds: float) -> None:
        """The verifier has answered."""
        self.verify_s, self.verify_timings = seconds, answer.timings
        self.rpc_s += max(seconds - answer.timings.total_ns * 1e-9, 0.0)

    def verified_meanwhile(self, answer: VerifyAnswer, seconds: float, *, ahead: bool) -> None:
        """The verifier has answered, ``seconds`` after both workers were asked, or after its last answer.

        What it waited for drafts in between is what they cost the round, messages to the drafter included. Where both
        were not asked ``ahead``, and the drafter keeps the processor busy, the verifier may get its question late, and
        waits for less than was drafted.
        """
        drafting_s = self.draft_timings.total_ns * 1e-9 if self.draft_timings is not None else 0.0
        self.draft_s = answer.waited_ns * 1e-9
        if not ahead:
            beside_s = max(seconds - answer.timings.total_ns * 1e-9, 0.0)
            self.draft_s = min(max(self.draft_s, drafting_s), beside_s)
        self.rpc_s = max(self.draft_s - drafting_s, 0.0)
        self.verified(answer, max(seconds - self.draft_s, 0.0))

    def report(self, rows: BatchRows, now: float) -> RoundReport:
        """For whoever counts."""
        return RoundReport(
            seconds=now - self.started, draft_s=self.draft_s, verify_s=self.verify_s, draft_timings=self.draft_timings,
            verify_timings=self.verify_timings, outcomes=tuple(self.outcomes), context=rows.context,
            prefill_tokens=rows.entered)
