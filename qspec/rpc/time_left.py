"""How much of a batch's time is left when its turn comes: it may have waited for the worker's one thread."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypeVar

from qspec.interfaces import DraftBatch, VerifyBatch

_Batch = TypeVar("_Batch", DraftBatch, VerifyBatch)


def after_waiting(batch: _Batch, since: float) -> _Batch:
    """The batch, with the time that is left of it; it came at ``since`` of the monotonic clock."""
    if batch.time_left_s is None:
        return batch
    return replace(batch, time_left_s=max(batch.time_left_s - (time.monotonic() - since), 0.0))
