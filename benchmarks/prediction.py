"""What speculation should gain, from what one step costs and how often drafts stand.

    speed-up = E / (k·c + v)

with E the tokens of a round, c a draft step and v a verify pass, both in units of a plain step (one row through the
verifier), as the coordinator sees these calls. A prediction that misses the measured ratio means that time goes where
these three do not look: between the calls.

Everything here is about decoding. The round that prefills is taken out: it is the first, it never drafts, it commits
one token, and its verify call lasts until the first token but for the coordinator's own share of about a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.samples import Sample, Speculation
from qspec.draft_length import expected_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCosts:
    """Sums over the decode rounds of several texts."""

    rounds: int
    tokens: int
    """Tokens that these rounds committed and the texts kept."""
    drafted: int
    draft_s: float
    verify_s: float
    decode_s: float
    """From the first tokens to the last, everything included."""
    rpc_s: float
    """Of draft and verify calls, what the workers did not spend working; the prefill's calls are still in it."""
    rounds_per_draft_length: tuple[int, ...]

    @property
    def verify_pass_s(self) -> float:
        """Seconds of one verify pass."""
        return self.verify_s / self.rounds

    @property
    def draft_step_s(self) -> float | None:
        """Seconds of drafting one token, None where nothing was drafted."""
        return self.draft_s / self.drafted if self.drafted else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A configuration's costs in plain steps, and what follows from them."""

    c: float | None
    """A draft step; None where nothing was drafted."""
    v: float
    """A verify pass."""
    draft_length: float
    """Mean tokens drafted per round."""
    expected_tokens: float
    """Tokens per round that the acceptance lets expect."""
    speed_up: float
    """Over plain decoding."""


def decode_costs(samples: Sequence[Sample]) -> DecodeCosts | None:
    """The decode rounds of texts that came out of a stack; None when they are too few to tell from the prefill."""
    measured = [(sample, sample.speculation) for sample in samples if sample.speculation is not None]
    lengths = max((len(stats.rounds_per_draft_length) for _, stats in measured), default=0)
    histogram = [
        sum(stats.rounds_per_draft_length[length] for _, stats in measured if length < len(
            stats.rounds_per_draft_length))
        for length in range(lengths)
    ]
    if histogram:
        histogram[0] -= len(measured)  # the rounds that prefilled
    costs = DecodeCosts(
        rounds=sum(stats.rounds - 1 for _, stats in measured),
        tokens=sum(sample.decode_tokens for sample, _ in measured),
        drafted=sum(stats.drafted for _, stats in measured),
        draft_s=sum(stats.draft_s for _, stats in measured),
        verify_s=sum(stats.verify_s - sample.first_token_s for sample, stats in measured),
        decode_s=sum(sample.decode_s for sample, _ in measured),
        rpc_s=sum(stats.rpc_s for _, stats in measured),
        rounds_per_draft_length=tuple(histogram),
    )
    return costs if costs.rounds > 0 and costs.verify_s > 0 else None


def acceptance(statistics: Sequence[Speculation]) -> float | None:
    """Probability that a draft stands, given that those before it in its round did; None without drafts.

    Position i counts as tried when position i-1 stood and i was drafted, at most.
    """
    tried = stood = 0
    for stats in statistics:
        before: int | None = None
        for drafted, accepted in zip(stats.drafted_per_position, stats.accepted_per_position, strict=True):
            tried += drafted if before is None else min(drafted, before)
            stood += accepted
            before = accepted
    return stood / tried if tried else None


def predict(costs: DecodeCosts, plain_step_s: float, probability: float | None) -> Prediction:
    """What ``costs`` and an acceptance ``probability`` (None without drafts) promise over plain decoding."""
    alpha = 0.0 if probability is None else probability
    tokens = sum(
        rounds * expected_tokens(alpha, length) for length, rounds in enumerate(costs.rounds_per_draft_length)
    ) / costs.rounds
    draft_step_s = costs.draft_step_s
    c = None if draft_step_s is None else draft_step_s / plain_step_s
    v = costs.verify_pass_s / plain_step_s
    mean_length = costs.drafted / costs.rounds
    return Prediction(
        c=c, v=v, draft_length=mean_length, expected_tokens=tokens,
        speed_up=tokens / ((0.0 if c is None else mean_length * c) + v),
    )
