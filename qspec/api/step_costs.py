"""Timing the steps of a loaded pair, for ``qspec.pair_gain``: in a cache of its own, on one row of text."""

from __future__ import annotations

import time
from collections.abc import Callable

from qspec.api.engines import Engines
from qspec.engine.cached_decoder import CachedDecoder
from qspec.pair_gain import PairCosts

_LENGTHS = (4, 2, 1)
"""Draft lengths that are tried, as long as there is time."""
_SECONDS = 2.0
"""For everything; what cannot be left out is called once however long it takes."""
_MOST_CALLS = 5
_SHARE = 0.2
"""Of the time, for one figure."""


def measure_costs(engines: Engines) -> PairCosts:
    """Time draft steps, plain steps and verify passes; about two seconds, unless three single calls take longer."""
    block_size, most = engines.description.block_size, engines.description.max_draft_length
    lengths = [length for length in _LENGTHS if length <= most] or [1]
    blocks = -(-(max(lengths) + 1) // block_size)
    verifier = engines.verifier.cached_decoder(blocks)
    drafter = CachedDecoder(engines.drafter.forward, num_blocks=blocks, block_size=block_size)
    stop = time.perf_counter() + _SECONDS

    def verify_pass(rows: int) -> float:
        return _seconds(lambda: verifier.score([0] * rows, rows))

    plain_step, draft_step = verify_pass(1), _seconds(lambda: drafter.score([0], 1))
    verify_passes = [(lengths[0], verify_pass(lengths[0] + 1))]
    for length in lengths[1:]:
        if time.perf_counter() < stop:
            verify_passes.append((length, verify_pass(length + 1)))
    return PairCosts(plain_step=plain_step, draft_step=draft_step, verify_passes=tuple(verify_passes))


def _seconds(call: Callable[[], object]) -> float:
    """The quickest of a few calls: what disturbs a call only makes it longer."""
    best, stop = float("inf"), time.perf_counter() + _SHARE * _SECONDS
    for _ in range(_MOST_CALLS):
        started = time.perf_counter()
        call()
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended >= stop:
            break
    return best
