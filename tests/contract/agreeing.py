"""Sequences of workers that all tests of a module share: leases and rounds go on from one to the next."""

from __future__ import annotations

import itertools

from qspec.interfaces import Sampling
from tests.contract.sequences import Sequence
from tests.contract.sources import Workers
from tests.contract.test_worker_contract import started

LEASES, ROUNDS = itertools.count(1), itertools.count(100)


def begin(workers: Workers, slot: int = 0, sampling: Sampling = Sampling()) -> Sequence:
    """A prefilled sequence, in the place of an earlier one."""
    return started(workers, slot, next(LEASES), sampling)
