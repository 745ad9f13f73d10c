"""How likely drafts are to stand: by sequence, and over all sequences by position.

A sequence's estimate is one number, the probability that a draft stands given that those before it did. Its prior is
the population's, so that a new text starts from what the last ones showed. The population also knows the positions: by
how much later drafts stand more or less often than the first (``shape``), which is much the same for all texts of a
pair of models, and too much to learn from each.

Only what was *tried* counts, the accepted drafts and the first rejected one. Drafts behind a rejection say nothing, and
looking at them would not even be allowed: the next round draws at their positions again, from the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_PRIOR_ACCEPTANCE = 0.8
_POPULATION_PRIOR_TRIALS = 2.0
_SEQUENCE_PRIOR_TRIALS = 12.0
_SHAPE_PRIOR_TRIALS = 30.0
_LEAST_TRIALS = 8.0
"""Evidence does not age below this, so that one lucky probe does not overturn it."""
_SEQUENCE_KEEPS = 0.985
"""Weight that a sequence's evidence keeps per round."""
_POPULATION_KEEPS = 0.99


@dataclass(slots=True)
class AcceptanceEstimate:
    """Running probability that a drafted token of one sequence stands, given that those before it did."""

    idle_rounds: int = 0
    """Rounds since the last that drafted."""
    _tried: float = 0.0
    _stood: float = 0.0

    def probability(self, prior: float = _PRIOR_ACCEPTANCE) -> float:
        """The estimate, in (0, 1); ``prior``: what to expect of a sequence that nothing is known of."""
        kept = _kept(self._tried, _SEQUENCE_KEEPS**self.idle_rounds)
        return (kept * self._stood + _SEQUENCE_PRIOR_TRIALS * prior) / (kept * self._tried + _SEQUENCE_PRIOR_TRIALS)

    def update(self, drafted: int, accepted: int) -> None:
        """Take one round's outcome in."""
        if drafted == 0:
            self.idle_rounds += 1
            return
        kept = _kept(self._tried, _SEQUENCE_KEEPS ** (self.idle_rounds + 1))
        self._tried = kept * self._tried + min(accepted + 1, drafted)
        self._stood = kept * self._stood + accepted
        self.idle_rounds = 0


@dataclass(slots=True)
class PopulationAcceptance:
    """The same over all sequences, by position in the draft."""

    _tried: list[float] = field(default_factory=list)
    _stood: list[float] = field(default_factory=list)
    _expected: list[float] = field(default_factory=list)
    """What would have stood by the sequences' own estimates: long drafts are those of sequences that draft well."""

    @property
    def probability(self) -> float:
        """Over all positions, in (0, 1)."""
        prior = _POPULATION_PRIOR_TRIALS
        return (sum(self._stood) + prior * _PRIOR_ACCEPTANCE) / (sum(self._tried) + prior)

    def shape(self, longest: int) -> list[float]:
        """Factor on a sequence's probability by position, ``longest`` numbers; 1 where nothing is known."""
        known = zip(self._stood[:longest], self._expected[:longest], strict=True)
        factors = [(stood + _SHAPE_PRIOR_TRIALS) / (expected + _SHAPE_PRIOR_TRIALS) for stood, expected in known]
        return factors + [1.0] * (longest - len(factors))

    def age(self) -> None:
        """Let one round pass."""
        kept = _kept(sum(self._tried), _POPULATION_KEEPS)
        self._tried = [kept * tried for tried in self._tried]
        self._stood = [kept * stood for stood in self._stood]
        self._expected = [kept * expected for expected in self._expected]

    def update(self, drafted: int, accepted: int, probability: float) -> None:
        """Take one sequence's outcome of a round in; ``probability``: its own estimate before that."""
        tried = min(accepted + 1, drafted)
        missing = tried - len(self._tried)
        self._tried.extend([0.0] * missing)
        self._stood.extend([0.0] * missing)
        self._expected.extend([0.0] * missing)
        for index in range(tried):
            self._tried[index] += 1.0
            self._stood[index] += index < accepted
            self._expected[index] += probability


def _kept(tried: float, factor: float) -> float:
    """The factor by which evidence ages, not below the least that is kept."""
    return 1.0 if tried <= _LEAST_TRIALS else max(factor, _LEAST_TRIALS / tried)
