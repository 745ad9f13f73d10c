"""A round that the workers have been asked for: what they were asked, and the answers on their way."""

from __future__ import annotations

from dataclasses import dataclass

from qspec.interfaces import DraftAnswer, DraftBatch, VerifyAnswer, VerifyBatch
from qspec.open_round import OpenRound
from qspec.overlap import Pending
from qspec.round_batch import RoundPlan


@dataclass(slots=True, kw_only=True)
class AskedRound:
    """A round that the workers have been asked for."""

    this: OpenRound
    plan: RoundPlan
    drafts: DraftBatch
    """What the drafter was asked; without items nobody was."""
    batch: VerifyBatch
    """What the verifier was asked, or is to be asked when ``verifying`` is None."""
    called: float
    """When, in the loop's time."""
    drafting: Pending[DraftAnswer] | None = None
    verifying: Pending[VerifyAnswer] | None = None

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        for pending in (self.drafting, self.verifying):
            if pending is not None:
                pending.cancel()
        self.drafting = self.verifying = None
