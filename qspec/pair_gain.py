"""What a pair of methods will gain, from what its steps cost. Imports no torch.

    speed-up = E / (k·c + v),    E = (1 − α^(k+1)) / (1 − α)

over plain decoding by the same verifier, with c a draft step and v a verify pass of k + 1 rows, both in plain steps,
and α the probability that a draft stands (Leviathan et al. 2023, theorem 3.8). c and v are measured, on a loaded pair
(``qspec.api.step_costs``) or before anything is loaded (``qspec.engine.step_times``); α cannot be known before there is
a text, so a value is assumed, and said.
"""

from __future__ import annotations

from dataclasses import dataclass

from qspec.draft_length import expected_tokens

ASSUMED_ACCEPTANCE = 0.9
"""Probability that a draft stands: about what 8-bit drafts of a small model reach (``docs/methods.md``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCosts:
    """Seconds of single calls on one sequence."""

    plain_step: float
    """One row through the verifier."""
    draft_step: float
    """One row through the drafter."""
    verify_passes: tuple[tuple[int, float], ...]
    """(draft length, seconds of the pass that verifies so many drafts)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairGain:
    """The draft length that promises most, and what it promises."""

    draft_length: int
    c: float
    """A draft step, in plain steps."""
    v: float
    """A verify pass, in plain steps."""
    speed_up: float
    """Over plain decoding by the same verifier; below 1 drafting loses."""
    plain_rate: float
    """Tokens per second of plain decoding."""
    acceptance: float
    """What was assumed."""


def predict_gain(costs: PairCosts, acceptance: float = ASSUMED_ACCEPTANCE) -> PairGain:
    """The best of the draft lengths that were timed."""
    rate = 1 / costs.plain_step
    c = costs.draft_step / costs.plain_step
    gains = []
    for length, seconds in costs.verify_passes:
        v = seconds / costs.plain_step
        speed_up = expected_tokens(acceptance, length) / (length * c + v)
        gains.append(
            PairGain(draft_length=length, c=c, v=v, speed_up=speed_up, plain_rate=rate, acceptance=acceptance))
    return max(gains, key=lambda gain: gain.speed_up)
