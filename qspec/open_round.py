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
    draft_rpc_s: float = 0.0
    """Of ``draft_s``, what the drafter does not say that it worked; 0 where it worked beside the verifier."""
    verify_rpc_s: float = 0.0
    """Of ``verify_s``, what the verifier does not say that it worked."""
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    """Drafted and accepted tokens of each sequence that was decided on."""

    def drafted(self, answer: DraftAnswer, seconds: float) -> None:
        """The drafter has answered."""
        self.drafts = {result.slot: result.draft_tokens for result in answer.results}
        self.confidences = {result.slot: result.confidences for result in answer.results}
        self.fed = sequences_fed(answer)
        self.draft_s, self.draft_timings = seconds, answer.timings
        self.draft_rpc_s = _besides(seconds, answer.timings)

    def verified(self, answer: VerifyAnswer, seconds: float) -> None:
        """The verifier has answered."""
        self.verify_s, self.verify_timings = seconds, answer.timings
        self.verify_rpc_s = _besides(seconds, answer.timings)

    def verified_meanwhile(self, answer: VerifyAnswer, seconds: float, *, ahead: bool) -> None:
        """The verifier has answered, ``seconds`` after both workers were asked, or after its last answer.

        What it waited for drafts in between is what they cost the round, messages to the drafter included. Where both
        were not asked ``ahead``, and the drafter keeps the processor busy, the verifier may get its question late, and
        waits for less than was drafted.
        """
        drafting = self.draft_timings or StageTimings()
        self.draft_s = answer.waited_ns * 1e-9
        if not ahead:
            self.draft_s = min(max(self.draft_s, drafting.total_ns * 1e-9), _besides(seconds, answer.timings))
        self.draft_rpc_s = _besides(self.draft_s, drafting)
        self.verified(answer, max(seconds - self.draft_s, 0.0))

    def report(self, rows: BatchRows, now: float) -> RoundReport:
        """For whoever counts."""
        return RoundReport(
            seconds=now - self.started, draft_s=self.draft_s, draft_rpc_s=self.draft_rpc_s,
            draft_timings=self.draft_timings, verify_s=self.verify_s, verify_rpc_s=self.verify_rpc_s,
            verify_timings=self.verify_timings, outcomes=tuple(self.outcomes), context=rows.context,
            prefill_tokens=rows.entered)


def _besides(seconds: float, timings: StageTimings) -> float:
    """What a call of ``seconds`` took besides the worker's own time."""
    return max(seconds - timings.total_ns * 1e-9, 0.0)
