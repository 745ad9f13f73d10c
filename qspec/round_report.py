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
    """The draft call; 0 where nothing was drafted."""
    verify_s: float
    """The verify call."""
    draft_timings: StageTimings | None
    """The drafter's own account of it; None where nothing was drafted."""
    verify_timings: StageTimings
    """The verifier's."""
    outcomes: tuple[tuple[int, int], ...]
    """Drafted and accepted tokens of each sequence that was decided on."""
    context: int
    """Cached positions of the sequences that were to be decided on, together."""
    prefill_tokens: int
    """Committed tokens that were entered into the KV cache without a decision."""
