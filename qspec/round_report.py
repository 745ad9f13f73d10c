"""What one round of the decoding loop took and made: for whoever counts, never for whoever decides.

The loop makes one report a round, whatever the number of its sequences; the coordinator's metrics are fed from it. What
the workers tell of their own time is in it, so that their figures need no way of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from qspec.interfaces import StageTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round; times in seconds, as the loop's clock saw them."""

    seconds: float
    """From the choice of draft lengths to the commit."""
    draft_s: float
    """What drafts cost the round: the draft call, less what ran beside the verifier; 0 where nothing was drafted."""
    draft_rpc_s: float
    """Of it, what the drafter does not account for."""
    draft_timings: StageTimings | None
    """The drafter's own account of its call; None where nothing was drafted."""
    verify_s: float
    """The verify call."""
    verify_rpc_s: float
    """Of it, what the verifier does not account for."""
    verify_timings: StageTimings
    """The verifier's own account."""
    outcomes: tuple[tuple[int, int], ...]
    """Drafted and accepted tokens of each sequence that was decided on."""
    context: int
    """Cached positions of the sequences that were to be decided on, together."""
    prefill_tokens: int
    """Committed tokens that were entered into the KV cache without a decision."""
