"""What draft and verify calls cost: calibrated at warm-up, corrected while serving.

    verify(rows, context)            = V(rows) + context · v
    prefill(rows, attended)          = rows · P(rows) + attended · p, on top of the verify pass that they go into
    draft(n_1 ≥ … ≥ n_k, context)    = call + Σ_j (S(n_j) + share_j · context · d)

``rows`` are the rows of a verify pass that are decided on, or those that enter prompts, n_j the sequences that are fed
in draft step j, ``context`` the cached positions of all sequences together, ``attended`` those that the rows of prompts
attend to, row by row; V, P and S are curves. Seconds are those that the caller sees, so RPC and the change of turns are
in them: what a draft call costs before its first step is ``call``. The curves need not rise: on a CPU four rows can be
cheaper than three, on a GPU row counts are padded.

Corrections are multiplicative, and small steps on purpose. A measurement moves every part of its call by the share that
the part was predicted to have: the whole curve a little (a machine that got slower is slower everywhere), the curve's
own place more, and what a cached position adds, which one call of warm-up against another tells badly. Two slow
measurements in a row at one place are put down to a page fault or another process; only the third counts, and then with
a bounded influence. A call that was much faster is believed sooner, since nothing makes calls shorter by accident: a
drafter that recovered is noticed by a few probes. Where nothing is measured any more, the place's own correction fades,
so that no bad luck keeps a draft length from ever being tried again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qspec.round_overhead import RoundOverhead

Floats = NDArray[np.float64]
Points = tuple[tuple[int, float], ...]
"""(count, seconds), counts rising."""

_CURVE_GAIN = 0.05
_PLACE_GAIN = 0.15
_MOST_SURPRISE = 0.35
"""Largest logarithm of measured over predicted that a measurement counts with."""
_SUSPICIOUS = 0.4
"""Above this, a measurement may be a disturbance."""
_FAST = 0.25
"""Below minus this, a measurement is certain to say something: nothing makes a call shorter than it can be."""
_EAGERNESS = 4.0
"""Factor on what is learnt from such a measurement."""
_PATIENCE = 2
"""Suspicious measurements in a row, at one place, that are not believed."""
_FADE = 0.998
"""What a place's own correction keeps with every measurement elsewhere."""
_SAME_PLACE = 1.2
"""Counts closer than this ratio share a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedCosts:
    """What warm-up measured."""

    verify: Points = ()
    """Seconds of a verify pass by rows, without context."""
    draft_step: Points = ()
    """Seconds of a draft step by sequences, without context."""
    draft_call_s: float = 0.0
    """Seconds of a draft call besides its steps."""
    verify_context_s: float = 0.0
    """Seconds that a cached position adds to a verify pass."""
    draft_context_s: float = 0.0
    """Seconds that a cached position adds to a draft step."""
    prefill_row: Points = ()
    """Seconds that a row of a prompt adds to a verify pass, by such rows in it, without context."""
    prefill_context_s: float = 0.0
    """Seconds that a cached position adds to such a row."""


NOT_CALIBRATED = CalibratedCosts()


class CostObserver(Protocol):
    """Who is told what calls took.

    ``jitters``: whether seconds err to either side, so that a short call says no more than a long one.
    """

    def observe_verify(self, rows: int, context: int, seconds: float, *, jitters: bool = False) -> None:
        """A verify pass without prefill took ``seconds``; ``context``: cached positions of its sequences."""
        ...

    def observe_prefill(self, entered: int, attended: int, rows: int, context: int, seconds: float) -> None:
        """A verify pass took ``seconds`` that entered so many rows of prompts beside those that it decided on.

        ``attended``: cached positions that the entered ones attend to, row by row; ``rows`` and ``context`` as in a
        pass without them.
        """
        ...

    def observe_draft(self, fed: Sequence[int], context: int, seconds: float, *, jitters: bool = False) -> None:
        """A draft call took ``seconds``; ``fed``: sequences by step, ``context``: cached positions of the first's."""
        ...


class Curve:
    """Seconds as a function of a count: known at places, interpolated between and extended beyond them."""

    def __init__(self, points: Points = ()) -> None:
        self._counts = [count for count, _ in points]
        self._base = np.array([seconds for _, seconds in points], dtype=np.float64)
        self._correction = np.zeros(len(points))
        self._suspicions = [0] * len(points)
        self._seconds = self._base.copy()

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return bool(self._counts)

    def at(self, count: int) -> float:
        """Seconds at ``count``; 0 when nothing is known yet."""
        return float(self.table(np.array([count], dtype=np.float64))[0])

    def table(self, counts: Floats) -> Floats:
        """Seconds at each of ``counts``: linear between places, level before the first, risen straight on behind."""
        if not self._counts:
            return np.zeros(len(counts))
        seconds: Floats = np.interp(counts, self._counts, self._seconds)
        if len(self._counts) > 1 and len(counts) and counts[-1] > self._counts[-1]:
            slope = (self._seconds[-1] - self._seconds[-2]) / (self._counts[-1] - self._counts[-2])
            seconds += max(float(slope), 0.0) * np.maximum(counts - self._counts[-1], 0.0)
        return seconds

    def observe(self, count: int, seconds: float, share: float = 1.0, *, jitters: bool = False) -> None:
        """Correct the curve: a call of which this count's part was predicted as ``at(count)`` took ``seconds``.

        ``share``: how much of the call the part was, at most 1. ``jitters``: as for ``CostObserver``.
        """
        if seconds <= 0.0:
            return
        place = self._place(count, seconds)
        surprise = math.log(seconds / max(self.at(count), 1e-12))
        if surprise > _SUSPICIOUS and self._suspicions[place] < _PATIENCE and not jitters:
            self._suspicions[place] += 1
            return
        if surprise <= _SUSPICIOUS:
            self._suspicions[place] = 0
        eagerness = _EAGERNESS if surprise < -_FAST and not jitters else 1.0
        surprise = eagerness * share * max(-_MOST_SURPRISE, min(surprise, _MOST_SURPRISE))
        own = self._correction[place] + _PLACE_GAIN * surprise
        self._correction *= _FADE
        self._correction[place] = own
        self._base *= math.exp(_CURVE_GAIN * surprise)
        self._seconds = self._base * np.exp(self._correction)

    def _place(self, count: int, seconds: float) -> int:
        """Index of the place that ``count`` belongs to; a new one when no other is close.

        Behind what was calibrated the measurement itself is the best guess, unless it is beyond belief.
        """
        counts = self._counts
        index = bisect_left(counts, count)
        close = [i for i in (index - 1, index) if 0 <= i < len(counts) and _close(counts[i], count)]
        if close:
            return min(close, key=lambda i: abs(counts[i] - count))
        guess = self.at(count)
        if not counts:
            guess = seconds
        elif index in (0, len(counts)):
            guess = min(max(seconds, guess / 4), guess * 4)
        counts.insert(index, count)
        self._base = np.insert(self._base, index, guess)
        self._correction = np.insert(self._correction, index, 0.0)
        self._suspicions.insert(index, 0)
        self._seconds = np.insert(self._seconds, index, guess)
        return index


def _close(one: int, other: int) -> bool:
    return max(one, other) < _SAME_PLACE * min(one, other)


def _moved(ratio: float, share: float, *, jitters: bool = False) -> float:
    """Factor on a number that had this share in a call which took ``ratio`` times what was predicted."""
    if ratio >= math.exp(_SUSPICIOUS) and not jitters:
        return 1.0
    surprise = max(-_MOST_SURPRISE, min(math.log(max(ratio, 1e-9)), _MOST_SURPRISE))
    return math.exp(_PLACE_GAIN * surprise * share)


class CostTable:
    """Predicted seconds of draft and verify calls, and of what prompts add to these; see the module."""

    def __init__(self, calibrated: CalibratedCosts = NOT_CALIBRATED) -> None:
        self.verify = Curve(calibrated.verify)
        """V, by rows."""
        self.draft_step = Curve(calibrated.draft_step)
        """S, by sequences."""
        self.prefill_row = Curve(calibrated.prefill_row)
        """P, by rows of prompts."""
        self.overhead = RoundOverhead()
        """What whole rounds take beside their calls."""
        self.draft_call_s = calibrated.draft_call_s
        self.verify_context_s = calibrated.verify_context_s
        self.draft_context_s = calibrated.draft_context_s
        self.prefill_context_s = calibrated.prefill_context_s

    @property
    def known(self) -> bool:
        """Whether both a verify pass and a draft step were measured."""
        return self.verify.known and self.draft_step.known

    def verify_seconds(self, rows: int, context: float = 0) -> float:
        """Seconds of a verify pass."""
        return self.verify.at(rows) + context * self.verify_context_s

    def prefill_seconds(self, entered: int, attended: float = 0) -> float:
        """Seconds that rows of prompts add to a verify pass; 0 when nothing is known yet."""
        return entered * self.prefill_row.at(entered) + attended * self.prefill_context_s

    def draft_seconds(self, fed: Sequence[int], context: float = 0) -> float:
        """Seconds of a draft call whose steps feed ``fed`` sequences each; 0 for none.

        ``context``: cached positions of the sequences that the first step feeds.
        """
        if not fed:
            return 0.0
        steps = self.draft_step.table(np.array(sorted(fed), dtype=np.float64))
        return float(self.draft_call_s + steps.sum()) + self._draft_context(fed, context)

    def observe_verify(self, rows: int, context: int, seconds: float, *, jitters: bool = False) -> None:
        """Take a verify pass without prefill in."""
        read = context * self.verify_context_s
        predicted = self.verify_seconds(rows, context)
        if not self.verify.known or predicted <= 0.0:
            self.verify.observe(rows, max(seconds - read, 0.1 * seconds))
            return
        curve, ratio = self.verify.at(rows), seconds / predicted
        self.verify.observe(rows, curve * ratio, curve / predicted, jitters=jitters)
        self.verify_context_s *= _moved(ratio, read / predicted, jitters=jitters)

    def observe_prefill(self, entered: int, attended: int, rows: int, context: int, seconds: float) -> None:
        """Take a verify pass with prefill in: what it says of the rows of prompts, the rest being known."""
        beside, added = self.verify_seconds(rows, context), self.prefill_seconds(entered, attended)
        if not self.prefill_row.known or added <= 0.0:
            read = attended * self.prefill_context_s
            self.prefill_row.observe(entered, max(seconds - beside - read, 0.1 * seconds) / entered)
            return
        predicted = beside + added
        row = self.prefill_row.at(entered)
        self.prefill_row.observe(entered, row * seconds / predicted, entered * row / predicted)
        reading = attended * self.prefill_context_s / predicted
        self.prefill_context_s *= _moved(seconds / predicted, reading)

    def observe_draft(self, fed: Sequence[int], context: int, seconds: float, *, jitters: bool = False) -> None:
        """Take a draft call in."""
        if not fed:
            return
        predicted = self.draft_seconds(fed, context)
        if not self.draft_step.known or predicted <= 0.0:
            self.draft_step.observe(fed[0], seconds / len(fed))
            return
        ratio, read = seconds / predicted, self._draft_context(fed, context)
        for sequences in dict.fromkeys(fed):
            step = self.draft_step.at(sequences)
            share = step * fed.count(sequences) / predicted
            self.draft_step.observe(sequences, step * ratio, share, jitters=jitters)
        self.draft_call_s *= _moved(ratio, self.draft_call_s / predicted, jitters=jitters)
        self.draft_context_s *= _moved(ratio, read / predicted, jitters=jitters)

    def _draft_context(self, fed: Sequence[int], context: float) -> float:
        return context * self.draft_context_s * sum(fed) / fed[0]
