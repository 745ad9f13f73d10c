"""The controller of the draft lengths: what it knows, and what it asks for in each round.

``qspec.draft_length`` says which lengths are best for given costs and chances. The policy holds what is known of both,
and sees to it that it stays known: where drafting does not pay, one round in a hundred at most drafts all the same, for
a few sequences and so few tokens that it costs half a per cent of the time; where others draft, a sequence that has not
for long drafts one token. A request that fixes its draft length gets it, and is part of the price of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qspec.acceptance_estimate import AcceptanceEstimate, PopulationAcceptance
from qspec.confidence import ConfidenceWorth
from qspec.cost_table import CostTable
from qspec.draft_length import NO_LOAD, Load, Outlook, Plan, best_plan, price
from qspec.early_stop import logit
from qspec.interfaces import EarlyStop

PROBE_EVERY = 100
"""Rounds without a draft after which one may draft."""
PLAN_EVERY = 4
"""Rounds for which a plan is kept where nothing but estimates changes, and they change slowly; planning takes as long
as a message."""
_IDLE_PLAN_EVERY = 4
"""How many times longer a plan without drafts is kept: hardly any estimate changes in its rounds."""
_PROBE_SHARE = 0.005
"""Share of the time that probing may cost."""
_PROBED_SEQUENCES = 4
_PROBE_LENGTHS = (4, 2, 1)
_IDLE_ROUNDS = 200
"""Rounds without a draft after which a sequence drafts one token along with others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A sequence that can be drafted for in this round."""

    acceptance: AcceptanceEstimate
    cap: int
    """Most tokens that are worth drafting; see ``Outlook``."""
    draft_length: int | None = None
    """The request's own draft length; None leaves it to the policy."""

    @property
    def fixed(self) -> bool:
        """Whether the request has its own."""
        return self.draft_length is not None

    @property
    def most(self) -> int:
        """Most tokens to draft; all of them where ``fixed``."""
        return self.cap if self.draft_length is None else min(self.draft_length, self.cap)


class DraftLengthPolicy:
    """Chooses draft lengths round by round; used by one thread."""

    def __init__(self, longest: int, *, plan_every: int = PLAN_EVERY) -> None:
        """``plan_every``: rounds for which a plan may be kept; 1 where its goodput ends drafts early, too."""
        self.longest = longest
        self._plan_every = plan_every
        self.costs = CostTable()
        self.population = PopulationAcceptance()
        self.worth = {True: ConfidenceWorth(), False: ConfidenceWorth()}
        """What confidence is worth, for greedy sequences and for those that draw at random."""
        self.probes = 0
        """Rounds that drafted to learn and for nothing else."""
        self._rounds_without_draft = 0
        self._plan: Plan | None = None
        self._planned: Plan | None = None
        self._drafts = False  # for anybody who leaves that to the policy
        self._room: tuple[object, ...] = ()
        self._rounds_planned = 0

    def choose(self, candidates: Sequence[Candidate], load: Load = NO_LOAD) -> tuple[int, ...]:
        """The draft length of each candidate in this round; none is above its cap."""
        self.population.age()
        if not candidates:
            return ()
        if all(candidate.fixed for candidate in candidates):
            return tuple(candidate.most for candidate in candidates)
        if not self.costs.known:
            return self._learn_costs(candidates)
        plan = self._best(candidates, load)
        if self._drafts:
            self._rounds_without_draft = 0
            plan = _with_idle(plan, candidates)
        elif any(candidate.most and not candidate.fixed for candidate in candidates):
            self._rounds_without_draft += 1
            plan = self._probe(plan, candidates, load)
        self._plan = plan
        return plan.lengths

    def _best(self, candidates: Sequence[Candidate], load: Load) -> Plan:
        """``best_plan``, kept for some rounds while the same sequences may draft as much beside as many other rows."""
        room = (load.rows, load.joining, *(
            (id(one.acceptance), min(one.most, self.longest), one.fixed) for one in candidates))
        self._rounds_planned += 1
        kept = self._plan_every if self._drafts else _IDLE_PLAN_EVERY * self._plan_every
        if self._planned is None or room != self._room or self._rounds_planned >= kept:
            self._planned = best_plan(self._outlooks(candidates), self._shape, self.costs, load)
            self._room, self._rounds_planned = room, 0
            self._drafts = _any_chosen(self._planned, candidates)
        return self._planned

    def _outlooks(self, candidates: Sequence[Candidate]) -> list[Outlook]:
        prior = self.population.probability
        return [Outlook(one.acceptance.probability(prior), one.most, one.fixed) for one in candidates]

    @property
    def _shape(self) -> list[float]:
        return self.population.shape(self.longest)

    def early_stop(self, estimate: AcceptanceEstimate, *, greedy: bool) -> EarlyStop:
        """When a sequence's draft of this round should end early: where its chance is worth less than row or step."""
        plan, worth, mean = self._plan, self.worth[greedy], self.population.probability
        better = logit(estimate.probability(mean)) - logit(mean)
        if plan is None or not math.isfinite(plan.goodput):
            return worth.early_stop(0.0, 0.0, better)
        drawn, fed = plan.goodput * plan.row_s, plan.goodput * (plan.row_s + plan.step_s) / mean
        return worth.early_stop(drawn, fed, better)

    def observe(
        self, estimate: AcceptanceEstimate, drafted: int, accepted: int,
        confidences: Sequence[float] = (), *, greedy: bool = True,
    ) -> None:
        """Take the outcome of one sequence's round in, and note it in its ``estimate``."""
        if drafted:
            self.population.update(drafted, accepted, estimate.probability(self.population.probability))
            self.worth[greedy].update(confidences, drafted, accepted)
        estimate.update(drafted, accepted)

    def _learn_costs(self, candidates: Sequence[Candidate]) -> tuple[int, ...]:
        """Without calibration, the first rounds draft one token and no other than that."""
        return tuple(one.most if one.fixed else min(one.most, 1) for one in candidates)

    def _probe(self, plan: Plan, candidates: Sequence[Candidate], load: Load) -> Plan:
        """The plan, or every hundredth time at most one that drafts for those who have not for longest."""
        if self._rounds_without_draft <= PROBE_EVERY:
            return plan
        outlooks, shape = self._outlooks(candidates), self._shape
        free = [index for index, outlook in enumerate(outlooks) if outlook.cap and not outlook.fixed]
        free.sort(key=lambda index: -candidates[index].acceptance.idle_rounds)
        saved = self._rounds_without_draft * plan.seconds * _PROBE_SHARE
        for length in _PROBE_LENGTHS:
            for count in (_PROBED_SEQUENCES, 1):
                lengths = list(plan.lengths)
                for index in free[:count]:
                    lengths[index] = min(length, outlooks[index].cap)
                probe = price(outlooks, lengths, shape, self.costs, load)
                if probe.seconds - plan.seconds <= saved:
                    self._rounds_without_draft = 0
                    self._rounds_planned = _IDLE_PLAN_EVERY * self._plan_every - 2  # what comes of it is known then
                    self.probes += 1
                    return probe
        return plan


def _any_chosen(plan: Plan, candidates: Sequence[Candidate]) -> bool:
    """Whether the plan drafts for anybody who leaves that to the policy."""
    return any(length and not candidate.fixed for length, candidate in zip(plan.lengths, candidates, strict=True))


def _with_idle(plan: Plan, candidates: Sequence[Candidate]) -> Plan:
    """The plan, with one token for the sequence that has not drafted for longest, if that is long."""
    idle = [
        index for index, candidate in enumerate(candidates)
        if not plan.lengths[index] and candidate.cap and not candidate.fixed
        and candidate.acceptance.idle_rounds >= _IDLE_ROUNDS
    ]
    if not idle:
        return plan
    longest = max(idle, key=lambda index: candidates[index].acceptance.idle_rounds)
    return replace(plan, lengths=tuple(1 if i == longest else length for i, length in enumerate(plan.lengths)))
