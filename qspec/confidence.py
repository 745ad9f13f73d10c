"""What a drafter's confidence is worth: how likely a token stands, given the largest probability it was drawn against.

Logistic regression of the outcome on the logit of the confidence (``qspec.early_stop``), kept up to date token by
token: an extended Kalman filter over intercept and slope, with some forgetting. It begins with a slope of 0, which
makes every token as good as any other, and no draft is ended early until the slope is certain: a confidence that says
nothing never costs a draft.

Outcomes are those of tokens that were *tried*, accepted or first rejected. The confidences behind a rejection are left
alone, as in ``qspec.acceptance_estimate``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qspec.early_stop import logit, sigmoid
from qspec.interfaces import EarlyStop

_FORGET = 1.0005
"""Factor on the uncertainty per outcome."""
_INTERCEPT_VARIANCE = 4.0
_SLOPE_VARIANCE = 0.05
_CERTAIN = 3.0
"""Standard deviations by which the slope has to be above 0 before a draft is ended early."""


@dataclass(slots=True)
class ConfidenceWorth:
    """The regression's state, for all sequences that draw alike."""

    intercept: float = 1.4  # sigmoid(1.4) = 0.8, the acceptance that is assumed at first
    slope: float = 0.0
    _ii: float = _INTERCEPT_VARIANCE
    _is: float = 0.0
    _ss: float = _SLOPE_VARIANCE

    def update(self, confidences: Sequence[float], drafted: int, accepted: int) -> None:
        """Take one sequence's outcome of a round in; ``confidences`` from the first position on."""
        for index, confidence in enumerate(confidences[: min(accepted + 1, drafted)]):
            self._learn(logit(confidence), index < accepted)

    @property
    def telling(self) -> bool:
        """Whether the confidence is known to say something."""
        return self.slope > _CERTAIN * math.sqrt(self._ss)

    def early_stop(self, least_drawn: float, least_fed: float, better: float = 0.0) -> EarlyStop:
        """The rule for a draft: the thresholds once the confidence tells something, before that none.

        ``better``: by how much the sequence's drafts stand more often than others', in the logit.
        """
        return EarlyStop(
            least_drawn=min(least_drawn, 1.0) if self.telling else 0.0,
            least_fed=min(least_fed, 1.0) if self.telling else 0.0,
            intercept=self.intercept + better, slope=max(self.slope, 0.0),
        )

    def _learn(self, x: float, stood: bool) -> None:
        chance = sigmoid(self.intercept + self.slope * x)
        weight = chance * (1.0 - chance)
        self._ii = min(self._ii * _FORGET, _INTERCEPT_VARIANCE)
        self._ss = min(self._ss * _FORGET, _SLOPE_VARIANCE)
        of_intercept, of_slope = self._ii + self._is * x, self._is + self._ss * x
        total = 1.0 + weight * (of_intercept + of_slope * x)
        error = (float(stood) - chance) / total
        self.intercept += of_intercept * error
        self.slope += of_slope * error
        self._ii -= weight * of_intercept**2 / total
        self._is -= weight * of_intercept * of_slope / total
        self._ss -= weight * of_slope**2 / total
