"""How many rows of prompts go into a round in which other texts go on: few enough that nobody waits long for them.

A verify pass takes prompts along with what it decides on, and every text in it waits for all of it. On a CPU a row of a
prompt costs about as much as a decided one, so a pass full of them would keep every running stream waiting for seconds;
on a GPU a full pass costs milliseconds. So the bound is one of time, and the cost table says how many rows that is.
A person notices a gap of some tenths of a second in a text; ``StackConfig.max_prefill_s`` is below that, and above what
a round takes anyway where the model fits the machine, so that prompts get about as much of the time as texts do.

A few rows go in whatever they cost, so that every prompt gets on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qspec.cost_table import CostTable

LEAST_ROWS = 16
"""Rows that go into every round. Fewer would not make a round of a large model on a CPU much shorter: it reads all of
its weights for the first row."""


def prefill_rows(missing: Sequence[tuple[int, int]], room: int, costs: CostTable, most_s: float) -> int:
    """Rows of prompts to enter beside texts that go on.

    Args:
        missing: (cached positions, tokens to enter) of each prompt, in the order in which they are entered.
        room: rows that there is room for.
        costs: what they cost.
        most_s: seconds that they may add to the round; infinity where no text goes on.
    """
    wanted = min(sum(tokens for _, tokens in missing), room)
    if wanted <= LEAST_ROWS or math.isinf(most_s):
        return wanted
    if not costs.prefill_row.known:
        return LEAST_ROWS
    positions = np.concatenate([cached + np.arange(min(tokens, wanted)) for cached, tokens in missing])[:wanted]
    rows = np.arange(1.0, wanted + 1)
    added = rows * costs.prefill_row.table(rows) + costs.prefill_context_s * positions.cumsum()
    beyond = np.flatnonzero(added > most_s)
    return max(int(beyond[0]), LEAST_ROWS) if len(beyond) else wanted
