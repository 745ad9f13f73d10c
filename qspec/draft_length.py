"""How many tokens to draft: the number with the best predicted goodput, 0 included.

    goodput(k) = Σ_i E_i(k) / (draft(k, sequences) + verify(rows)),    E_i(k) = 1 + α_i + … + α_i^min(k, cap_i)

E_i is what sequence i commits in a round when each draft stands with probability α_i; its cap is what it may still
make. The times are measured, first at warm-up, then in every round, with everything that a call costs (RPC and the
change of turns too). At k = 0 one round in a hundred drafts all the same, so that acceptance stays known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

_FORGET = 0.9
"""Weight that an old measurement keeps when a new one comes."""
_PROBE_EVERY = 100
"""Rounds without a draft after which one drafts."""
_PRIOR_ACCEPTANCE = 0.8
_PRIOR_WEIGHT = 8.0
_ACCEPTANCE_FORGET = 0.98


@dataclass(slots=True)
class AcceptanceEstimate:
    """Running probability that a drafted token stands, given that those before it did."""

    _tried: float = _PRIOR_WEIGHT
    _stood: float = _PRIOR_WEIGHT * _PRIOR_ACCEPTANCE

    @property
    def probability(self) -> float:
        """The estimate, in (0, 1)."""
        return self._stood / self._tried

    def update(self, drafted: int, accepted: int) -> None:
        """Take one round's outcome in: drafts behind the first rejection say nothing."""
        tried = accepted + (1 if accepted < drafted else 0)
        for index in range(tried):
            self._tried = self._tried * _ACCEPTANCE_FORGET + 1.0
            self._stood = self._stood * _ACCEPTANCE_FORGET + (1.0 if index < accepted else 0.0)


class Curve:
    """Seconds as a function of a count, known at some counts, interpolated between and extended beyond them."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, count: int, seconds: float) -> None:
        """Take a measurement in; a slower one than expected moves the estimate little, being mostly disturbance."""
        known = self._seconds.get(count)
        self._seconds[count] = seconds if known is None else _FORGET * known + (1 - _FORGET) * min(seconds, 2 * known)

    def at(self, count: int) -> float:
        """Seconds at ``count``; 0 when nothing is known yet."""
        if count in self._seconds:
            return self._seconds[count]
        counts = sorted(self._seconds)
        if len(counts) < 2:
            return self._seconds[counts[0]] if counts else 0.0
        index = min(max(bisect_left(counts, count), 1), len(counts) - 1)
        left, right = counts[index - 1], counts[index]
        slope = (self._seconds[right] - self._seconds[left]) / (right - left)
        return max(self._seconds[left] + slope * (count - left), min(self._seconds.values()) * 0.5)


@dataclass(slots=True)
class CostTable:
    """Seconds of draft and verify calls, as the caller sees them."""

    verify: Curve = field(default_factory=Curve)
    """By rows of the pass."""
    _draft: dict[int, Curve] = field(default_factory=dict)

    def observe_draft(self, sequences: int, draft_length: int, seconds: float) -> None:
        """Take a draft call in."""
        self._draft.setdefault(sequences, Curve()).observe(draft_length, seconds)

    def draft(self, sequences: int, draft_length: int) -> float:
        """Seconds of a draft call; from the nearest number of sequences that was measured."""
        if draft_length == 0 or not self._draft:
            return 0.0
        nearest = min(self._draft, key=lambda known: (abs(known - sequences), known))
        return self._draft[nearest].at(draft_length)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one sequence promises: its acceptance, and the most tokens worth drafting for it."""

    acceptance: float
    cap: int


def expected_tokens(acceptance: float, draft_length: int) -> float:
    """Tokens that a round commits on average: ``1 + α + … + α^k``."""
    return sum(acceptance**index for index in range(draft_length + 1))


def goodput(outlooks: Sequence[Outlook], draft_length: int, costs: CostTable) -> float:
    """Predicted tokens per second of a round that drafts ``draft_length`` tokens; infinite where nothing is known."""
    lengths = [min(draft_length, outlook.cap) for outlook in outlooks]
    tokens = sum(expected_tokens(o.acceptance, length) for o, length in zip(outlooks, lengths, strict=True))
    drafting = sum(length > 0 for length in lengths)
    seconds = costs.draft(drafting, max(lengths)) + costs.verify.at(sum(lengths) + len(lengths))
    return tokens / seconds if seconds > 0 else float("inf")


def best_draft_length(outlooks: Sequence[Outlook], longest: int, costs: CostTable) -> int:
    """The draft length in ``0..longest`` with the best goodput; the shorter of equals."""
    return max(range(longest + 1), key=lambda length: (goodput(outlooks, length, costs), -length))


class DraftLengthPolicy:
    """Chooses the draft length of each round; keeps the costs and counts rounds without a draft."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.costs = CostTable()
        self._rounds_without_draft = 0

    def choose(self, outlooks: Sequence[Outlook]) -> int:
        """The draft length of this round, for the sequences that leave it to the policy (at least one)."""
        if self._rounds_without_draft >= _PROBE_EVERY:
            chosen = min(1, self.longest)
        else:
            chosen = best_draft_length(outlooks, self.longest, self.costs)
        self._rounds_without_draft = 0 if chosen else self._rounds_without_draft + 1
        return chosen
