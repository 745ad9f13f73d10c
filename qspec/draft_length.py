"""How many tokens each sequence drafts: the lengths with the best predicted goodput, 0 included.

    goodput(k_1, …, k_n) = Σ_i (1 + Σ_{j ≤ k_i} S_i(j)) / (f · (draft(n_1 ≥ n_2 ≥ …) + verify(rows + Σ_i k_i)))

S_i(j) is the chance that sequence i's first j drafts all stand, n_j the number of sequences with at least j drafts; the
seconds come from ``qspec.cost_table``, and with them f, what a round takes over its calls, which depends
on whether anybody drafts (``qspec.round_overhead``). Every draft adds one row to the verify pass, and S_i falls with j:
for a given number of rows, and a given longest draft, the best lengths are those of the largest S. So for every longest
draft the drafts are taken in order of S, and every prefix is priced. That is the optimum wherever a draft step costs a
fixed part and a part per sequence, whatever shape the cost of rows has; ``tests/test_draft_length.py`` holds it to
brute force.

While prompts are on their way in that do not fit into this round, time has another worth: those who wait for them could
be decoded in the same passes. Then what counts is tokens less the seconds' worth, at the goodput of the batch that
these texts will be part of; where a large batch makes tokens cheaply, a small one should not hold it up with dear ones.

Drafts have to promise some per cent more than none: of many plans whose costs are estimates, the best seems better than
it is.

There is no hysteresis: with one KV cache, a round without drafts leaves nothing behind that the next one would have to
make up for, so that changing one's mind costs nothing. The estimates themselves change slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qspec.cost_table import CostTable, Floats


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one sequence promises."""

    acceptance: float
    """Chance that a draft stands, given that those before it do."""
    cap: int
    """The most tokens worth drafting: never more than are left to make, less the one that a round makes anyway."""
    fixed: bool = False
    """Whether the request asked for ``cap`` drafts, no more and no fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a round does besides drafting and verifying drafts."""

    rows: int = 0
    """Rows of the verify pass that belong to no outlook: prompts being entered. What they cost by themselves has to be
    paid in any case and does not recur, so it counts neither for nor against drafting; what rows on top of them cost
    does."""
    context: int = 0
    """Cached positions of all sequences."""
    joining: int = 0
    """Texts whose prompts are being entered, and not to their ends in this round."""


LEAST_GAIN = 0.03
"""What drafts have to promise, as a share of the goodput without."""
NO_LOAD = Load()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The draft lengths of a round, and what they promise."""

    lengths: tuple[int, ...]
    tokens: float
    seconds: float
    row_s: float = 0.0
    """Seconds that one more drafted row adds to the verify pass."""
    step_s: float = 0.0
    """Seconds that a draft step saves by leaving one sequence out: all of it for a single one, little in a batch."""

    @property
    def goodput(self) -> float:
        """Tokens per second; infinite where no cost is known."""
        return self.tokens / self.seconds if self.seconds > 0 else float("inf")


def expected_tokens(acceptance: float, draft_length: int) -> float:
    """Tokens that a round commits on average: ``1 + α + … + α^k``."""
    return sum(acceptance**index for index in range(draft_length + 1))


def survival(outlooks: Sequence[Outlook], shape: Sequence[float]) -> Floats:
    """Chance that the first j + 1 drafts all stand: ``[sequences, longest]``, falling along j.

    ``shape``: factor on the acceptance by position, ``longest`` numbers.
    """
    acceptance = np.array([outlook.acceptance for outlook in outlooks])
    stands: Floats = np.clip(np.outer(acceptance, np.asarray(shape, dtype=np.float64)), 0.0, 1.0).cumprod(axis=1)
    return stands


def price(
    outlooks: Sequence[Outlook], lengths: Sequence[int], shape: Sequence[float], costs: CostTable, load: Load = NO_LOAD
) -> Plan:
    """What given lengths promise: the definition that ``best_plan`` maximises."""
    stands = survival(outlooks, shape)
    drafted = [(row, length) for row, length in zip(stands, lengths, strict=True) if length]
    tokens = len(outlooks) + sum(float(row[:length].sum()) for row, length in drafted)
    fed = [sum(length > step for _, length in drafted) for step in range(max(lengths, default=0))]
    rows = load.rows + len(outlooks) + sum(lengths)
    drafting = load.context * fed[0] / len(outlooks) if fed else 0
    seconds = costs.draft_seconds(fed, drafting) + costs.verify_seconds(rows, load.context)
    seconds -= _entering_seconds(len(outlooks), costs, load)
    return Plan(
        lengths=tuple(lengths), tokens=tokens, seconds=seconds * costs.overhead.factor(drafting=bool(fed)))


def _entering_seconds(count: int, costs: CostTable, load: Load) -> float:
    """What the rows of prompts add to a pass over ``count`` pending tokens."""
    if not load.rows:
        return 0.0
    return max(costs.verify_seconds(count + load.rows) - costs.verify_seconds(count), 0.0)


def best_plan(
    outlooks: Sequence[Outlook], shape: Sequence[float], costs: CostTable, load: Load = NO_LOAD
) -> Plan:
    """The lengths with the best goodput; the shorter of equals. ``shape`` as for ``survival``.

    Of plans that draft, only those count that promise ``LEAST_GAIN`` more than the one that does not.
    """
    count, longest = len(outlooks), len(shape)
    fixed = [min(outlook.cap, longest) if outlook.fixed else 0 for outlook in outlooks]
    none = price(outlooks, fixed, shape, costs, load)
    stands = survival(outlooks, shape).T  # [longest, sequences]: of equal chances the earlier draft goes first
    caps = np.array([0 if outlook.fixed else outlook.cap for outlook in outlooks])
    depths, owners = np.nonzero((np.arange(longest)[:, None] < caps) & (stands > 0.0))
    order = np.argsort(-stands[depths, owners], kind="stable")
    depths, owners = depths[order], owners[order]  # [drafts] in the order in which they are taken
    if not len(depths):
        return none
    allowed = np.arange(1, longest + 1)[:, None] > depths  # [longest draft, drafts]
    tokens = none.tokens + np.cumsum(allowed * stands[depths, owners], axis=1)
    drafted = np.cumsum(allowed, axis=1)
    already = (np.array(fixed) > np.arange(longest)[:, None]).sum(axis=1)  # [step]
    fed = already[:, None] + np.cumsum(np.arange(longest)[:, None] == depths, axis=1)  # [step, drafts]
    step_costs = costs.draft_step.table(np.arange(count + 1, dtype=np.float64))
    if load.context:
        step_costs = step_costs + load.context * costs.draft_context_s * np.arange(count + 1) / count
    step_costs[0] = 0.0
    # A sequence's later steps are left out where its drafts are shorter; fixed ones are drafted all the same.
    free = step_costs[fed] - step_costs[already][:, None]
    draft = step_costs[already].sum() + np.cumsum(free, axis=0) + costs.draft_call_s
    first_row = load.rows + count + sum(fixed)
    verify = costs.verify.table(np.arange(first_row, first_row + len(depths) + 1, dtype=np.float64))
    seconds = draft + verify[drafted] + load.context * costs.verify_context_s
    factor = costs.overhead.factor(drafting=True)
    seconds = factor * (seconds - _entering_seconds(count, costs, load))
    worth = _worth_of_time(outlooks, shape, costs, load)
    if worth is None:
        value = np.divide(tokens, seconds, out=np.zeros_like(tokens), where=seconds > 0)
        least = none.goodput * (1 + LEAST_GAIN)
    else:
        value = tokens - worth * seconds
        least = none.tokens - worth * none.seconds + LEAST_GAIN * none.tokens
    deepest, last = np.unravel_index(int(value.argmax()), value.shape)
    if value[deepest, last] <= least:
        return none
    taken = owners[: last + 1][allowed[deepest, : last + 1]]
    lengths = np.bincount(taken, minlength=count) + np.array(fixed)
    rows = int(drafted[deepest, last])
    drafting = int(fed[0, last])
    return Plan(
        lengths=tuple(int(length) for length in lengths),
        tokens=float(tokens[deepest, last]), seconds=float(seconds[deepest, last]),
        row_s=factor * max(float(verify[rows] - verify[0]) / rows, 0.0),
        step_s=factor * max(
            float(step_costs[drafting] - step_costs[min(1, drafting - 1)]) / max(drafting - 1, 1), 0.0),
    )


def _worth_of_time(
    outlooks: Sequence[Outlook], shape: Sequence[float], costs: CostTable, load: Load
) -> float | None:
    """Tokens per second of the batch that will be decoded once all prompts are in; None where none is left over."""
    if not load.joining:
        return None
    count = len(outlooks)
    mean = sum(outlook.acceptance for outlook in outlooks) / count
    everybody = (*outlooks, *[Outlook(mean, len(shape))] * load.joining)
    context = round(load.context * len(everybody) / count)
    return best_plan(everybody, shape, costs, Load(context=context)).goodput
