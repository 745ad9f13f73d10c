"""When a drafter ends a sequence's draft early: by distributions and submitted tokens, never by the token it drops.

Whether to draw the next token may depend on everything that is known before the draw: the distribution that it would
come from, and the tokens that the verifier will see. It must not depend on the token itself. A drafter that draws,
finds the token improbable and drops it leaves that position to the verifier's own draw just when the draft was rare,
and so shifts the text away from what was dropped (``tests/test_early_stop.py`` has the law, and the shift).

The rule's only measure is a distribution's largest probability, its *confidence*. What a confidence is worth differs
between models, methods and temperatures, so the coordinator learns it (``qspec.confidence``) and sends it along:

    chance(confidence) = sigmoid(intercept + slope · logit(confidence))

From round to round the same holds: the next draft lengths may depend on tokens that were tried, not on those behind a
rejection, which are drawn again from the same noise. How many of those there were reaches the controller only through
the time that their rows took.

The chance that a whole draft stands is the product over its tokens. No tensors: the drafter brings the confidence.

The loop asks for it only where it was told to (``SpeculationLoop``), and by default it is not. A confidence needs the
whole distribution, where a native drafter's greedy step keeps nothing but its argmax: for SmolLM2 a step then takes 4
to 9 % longer for one sequence, and 6 to 12 % for four. Ending early saves less: simulated with that machine's costs
(``python -m benchmarks.simulate --early-stop``, without noise) free confidences gain at most 1.4 % of the throughput of
one sequence and nothing for four; with 8 % longer steps it falls by 0.7 to 2.4 %, at every acceptance from 0.7 to 0.95.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from qspec.interfaces import EarlyStop

_MOST_LOGIT = 6.0


def logit(probability: float) -> float:
    """log(p / (1 - p)), held within ±6."""
    if probability <= 0.0:
        return -_MOST_LOGIT
    if probability >= 1.0:
        return _MOST_LOGIT
    return max(-_MOST_LOGIT, min(math.log(probability) - math.log1p(-probability), _MOST_LOGIT))


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), without overflow."""
    return 1.0 / (1.0 + math.exp(-value)) if value >= 0 else math.exp(value) / (1.0 + math.exp(value))


def chance(rule: EarlyStop, confidence: float) -> float:
    """Chance that a token drawn from a distribution of this confidence stands, given that those before it do."""
    return sigmoid(rule.intercept + rule.slope * logit(confidence))


@dataclass(slots=True)
class DraftGate:
    """Follows one sequence's draft through a round; without a rule everything passes and nothing is noted."""

    rule: EarlyStop | None
    confidences: list[float] = field(default_factory=list)
    """Confidence of every distribution that was shown, that of a token which was not drawn included."""
    ended: bool = False
    """Whether the sequence is not to be fed again in this round."""
    _survival: float = 1.0

    def admits(self, confidence: float) -> bool:
        """Whether to draw from a distribution; to be asked before the draw, once per step."""
        if self.rule is None:
            return True
        self.confidences.append(confidence)
        self._survival *= chance(self.rule, confidence)
        drawn = self._survival >= self.rule.least_drawn
        self.ended = not drawn or self._survival < self.rule.least_fed
        return drawn
