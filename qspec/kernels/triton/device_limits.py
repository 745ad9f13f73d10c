"""What a GPU's multiprocessors have room for, and how many reads may be in flight in it.

Tiles are tuned where there is room for all of them. Other GPUs have less shared memory (a program of Ada's and of small
Blackwells 99 KB, of Ampere's A100 163 KB, of Hopper's 227 KB), and a program that wants more cannot be launched at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

_SCRATCH = 1 << 10
"""Bytes that Triton takes for reductions and barriers."""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What decides how large tiles may be."""

    capability: tuple[int, int]
    shared_bytes: int
    """Shared memory of a program."""

    def stages(self, wanted: int, step_bytes: int) -> int:
        """Up to ``wanted`` stages of loads whose steps read ``step_bytes`` into shared memory; 0 where not two fit.

        Matrix instructions that read shared memory while the next step is fetched (Hopper's, large Blackwells') need a
        buffer for each stage; others take a step's numbers into registers first, and need one less.
        """
        spared = 0 if self.capability[0] in (9, 10) else 1
        fitting = (self.shared_bytes - _SCRATCH) // step_bytes + spared
        return min(wanted, fitting) if fitting >= 2 else 0


HOPPER = DeviceLimits((9, 0), 232448)


@lru_cache(maxsize=1)
def device_limits() -> DeviceLimits:
    """Those of this process's GPU; Hopper's where kernels are interpreted."""
    if not torch.cuda.is_available():
        return HOPPER
    room = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())["max_shared_mem"]
    return DeviceLimits(torch.cuda.get_device_capability(), int(room))
