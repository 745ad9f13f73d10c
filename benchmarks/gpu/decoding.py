"""Decoding measured round by round: how fast, how long the calls take, and how many drafts stand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.gpu.in_process import Pair
from qspec.interfaces import Sampling
from qspec.sequence import Sequence as Text

ENDLESS = 700
"""Tokens of a text: more than are ever measured."""
SETTLING = 3
"""Rounds behind the prompts that are not measured."""
ALONE = 4
"""Texts that are measured one after the other where one is decoded at a time: each accepts differently."""


@dataclass(slots=True)
class Rounds:
    """What some measured rounds took and made; every figure is of these rounds alone."""

    seconds: list[float] = field(default_factory=list)
    verify_s: list[float] = field(default_factory=list)
    """Of each verify call."""
    draft_calls: list[tuple[int, float]] = field(default_factory=list)
    """Steps and seconds of each draft call."""
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    """Drafted and accepted tokens, for each round and sequence."""
    made: int = 0
    """Tokens."""

    def add(self, other: Rounds) -> None:
        """Count these rounds, too."""
        self.seconds += other.seconds
        self.verify_s += other.verify_s
        self.draft_calls += other.draft_calls
        self.outcomes += other.outcomes
        self.made += other.made


@dataclass(frozen=True, slots=True)
class Decoding:
    """What decoding with one batch size, draft length and way of sampling measured."""

    tokens_per_s: float
    """Of the whole batch, over all measured rounds."""
    rates: tuple[float, ...]
    """The same of each run by itself: of one text each at batch 1, of all together else."""
    round_s: float
    """Median of a round."""
    verify_s: float
    """Median of a verify call."""
    draft_step_s: float | None
    """Median of a draft call, by step."""
    outside_s: float
    """Of a round, on average: neither draft nor verify call."""
    drafted: int
    accepted: int
    tried: int
    """Drafts that were decided on: those behind the first one that fell were not."""
    tokens_per_round: float
    """Of a sequence."""
    rounds: int
    """Rounds that were measured."""
    mean_draft_length: float
    """Tokens drafted for a sequence in a round."""

    @property
    def accepted_share(self) -> float | None:
        """Share of drafted tokens that stood."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def alpha(self) -> float | None:
        """Chance that a draft stands where those before it do: the acceptance of the formula."""
        return self.accepted / self.tried if self.tried else None


def decode(
    pair: Pair, count: int, tokens: int, draft_length: int | None, sampling: Sampling, *, alone: int = ALONE
) -> Decoding:
    """Generate with ``count`` sequences at once and measure rounds in which all of them decode.

    At batch 1 ``alone`` texts are decoded one after the other. ``draft_length``: None leaves it to the controller.
    """
    runs = [measured_rounds(pair, pair.sequences(count, ENDLESS, draft_length, sampling, first), tokens)
            for first in range(alone if count == 1 else 1)]
    every = Rounds()
    for each in runs:
        every.add(each)
    drafted, accepted = (sum(outcome[index] for outcome in every.outcomes) for index in (0, 1))
    calls_s = sum(every.verify_s) + sum(taken for _, taken in every.draft_calls)
    rounds = len(every.seconds)
    return Decoding(
        tokens_per_s=every.made / sum(every.seconds),
        rates=tuple(each.made / sum(each.seconds) for each in runs),
        round_s=statistics.median(every.seconds),
        verify_s=statistics.median(every.verify_s),
        draft_step_s=(
            statistics.median(taken / steps for steps, taken in every.draft_calls) if every.draft_calls else None),
        outside_s=(sum(every.seconds) - calls_s) / rounds,
        drafted=drafted, accepted=accepted,
        tried=sum(min(stood + 1, length) for length, stood in every.outcomes),
        tokens_per_round=every.made / rounds / count, rounds=rounds,
        mean_draft_length=drafted / rounds / count)


def measured_rounds(pair: Pair, sequences: Sequence[Text], tokens: int) -> Rounds:
    """Decode until ``tokens`` for each of ``sequences`` were measured, however long the prompts took.

    Rounds that captured a CUDA graph do not count: a server has them once.
    """
    found = Rounds()
    with pair.running(sequences):
        for _ in range(SETTLING):
            pair.loop.step()
        while found.made < tokens * len(sequences):
            if any(sequence.finish for sequence in sequences):
                raise RuntimeError("a text came to an end while it was measured: too few positions for it")
            for timed in (pair.timed_verifier, pair.timed_drafter):
                if timed is not None:
                    timed.calls.clear()
            graphs, length = pair.graphs, sum(len(sequence.generated) for sequence in sequences)
            started = time.perf_counter()
            pair.loop.step()
            seconds = time.perf_counter() - started
            report = pair.loop.report
            assert report is not None, "a round was just made"
            if pair.graphs == graphs:
                found.add(Rounds(
                    [seconds], [taken for _, taken in pair.timed_verifier.calls],
                    list(pair.timed_drafter.calls) if pair.timed_drafter is not None else [], list(report.outcomes),
                    sum(len(sequence.generated) for sequence in sequences) - length))
    return found
