"""What a round's calls took, where both workers were asked at once."""

from __future__ import annotations

import pytest

from qspec.interfaces import DraftAnswer, StageTimings, VerifyAnswer
from qspec.open_round import OpenRound


def timings(total_ms: float) -> StageTimings:
    return StageTimings(total_ns=round(total_ms * 1e6))


@pytest.mark.parametrize(("waited", "worked", "whole", "ahead", "draft"), [
    pytest.param(48, 34, 85, False, 48, id="all that the verifier waited, messages to the drafter included"),
    pytest.param(28, 34, 83, False, 45, id="what was drafted, where the verifier got its question late"),
    pytest.param(0, 34, 50, False, 16, id="no more than there was besides the verifier's work"),
    pytest.param(48, 34, 30, False, 0, id="nothing, where clocks disagree"),
    pytest.param(48, 34, 60, True, 48, id="what the verifier waited, whenever answers are read"),
])
def test_what_drafts_cost_does_not_depend_on_when_the_verifier_began_to_wait(
    waited: float, worked: float, whole: float, ahead: bool, draft: float
) -> None:
    this = OpenRound(1, 0.0)
    this.drafted(DraftAnswer(epoch=1, round=1, results=(), timings=timings(45)), 0.0)
    this.verified_meanwhile(VerifyAnswer(
        epoch=1, round=1, results=(), free_blocks=0, timings=timings(worked), prefill_rows=0,
        waited_ns=round(waited * 1e6)), whole * 1e-3, ahead=ahead)
    assert this.draft_s == pytest.approx(draft * 1e-3)
    assert this.verify_s == pytest.approx((whole - draft) * 1e-3)
    assert this.draft_rpc_s == pytest.approx(max(draft - 45, 0) * 1e-3)
    assert this.verify_rpc_s == pytest.approx(max(whole - draft - worked, 0) * 1e-3)
