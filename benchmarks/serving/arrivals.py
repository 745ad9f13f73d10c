"""When requests come and what they ask: a Poisson process over the prompts, the same for all that are compared.

A block's arrivals depend on the seed and the block's number alone; a higher load is the same arrivals closer together.
So two configurations, and even two loads, meet the same requests in the same order, and differences are paired.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a block."""

    at_s: float
    """Seconds after the block's first arrival."""
    prompt: int
    """Index of its prompt."""


def poisson_arrivals(*, rate: float, count: int, prompts: int, seed: int, block: int) -> tuple[Arrival, ...]:
    """``count`` arrivals at ``rate`` per second, the first at once; every prompt comes once before any comes again.

    A ``rate`` of infinity has them all come at once.
    """
    if not rate > 0 or count < 1 or prompts < 1:
        raise ValueError("arrivals need a rate, a count and prompts")
    gaps = random.Random(f"gaps {seed} {block}")
    order = random.Random(f"prompts {seed} {block}")
    arrivals, at_s, pending = [], 0.0, list[int]()
    for _ in range(count):
        if not pending:
            pending = order.sample(range(prompts), prompts)
        arrivals.append(Arrival(at_s, pending.pop()))
        at_s += gaps.expovariate(1.0) / rate
    return tuple(arrivals)
