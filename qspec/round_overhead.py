"""What rounds take beside their calls: those that draft, and those that do not.

Calls are timed where that can be done well, and what lies between them is nobody's call: drafts are handed over, texts
are delivered, some rounds are asked for ahead and others are not. It is no accident that this is more where drafts are
made, and a controller that did not know would draft where that is a loss. So whole rounds are held against what their
calls are said to have taken, and plans against each other by what comes of that. Against what the calls *took*: what
they were expected to take is wrong for a while wherever a machine gets slower, for rounds of either kind.

A kind of round that is not run comes to be thought of like the other one again, so that it is tried some time.
"""

from __future__ import annotations

_GAIN = 0.05
_LEAST, _MOST = 0.7, 1.5
"""A round that is further from its calls says no more than these: it was disturbed."""
_FADE = 0.002


class RoundOverhead:
    """Factors on the seconds of a round's calls, by whether it drafts; 1 until rounds are observed."""

    def __init__(self) -> None:
        self._factors = {False: 1.0, True: 1.0}

    def factor(self, *, drafting: bool) -> float:
        """How long such a round takes, over its calls."""
        return self._factors[drafting]

    def observe(self, *, drafting: bool, calls_s: float, seconds: float) -> None:
        """A round took ``seconds`` whose calls took ``calls_s``; if they took nothing it says nothing."""
        if calls_s <= 0.0:
            return
        ratio = min(max(seconds / calls_s, _LEAST), _MOST)
        self._factors[drafting] += _GAIN * (ratio - self._factors[drafting])
        self._factors[not drafting] += _FADE * (self._factors[drafting] - self._factors[not drafting])
