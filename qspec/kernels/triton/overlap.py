"""Programmatic dependent launch: the next kernel's programs are set up while the one before finishes.

A decoder layer is nine launches of a few microseconds each at small batch, and the gap between two is about one. From
Hopper on, a kernel can be launched before its predecessor is done, if it waits by itself before it touches memory.
Every kernel here does so first of all. ``QSPEC_GPU_OVERLAP`` in the environment is for measuring: 0 turns overlapping
off, 1 (the default) lets the next kernel come once this one's inputs are there, 2 at once, which lets kernels that wait
take room from those that work. Asking for weights before the inputs are there has cost more than it gave.
"""

from __future__ import annotations

import os
from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Wait until everything that kernels before this one wrote can be read."""
    if OVERLAP == 2:
        gdc_launch_dependents()
    if OVERLAP > 0:
        gdc_wait()
    if OVERLAP == 1:
        gdc_launch_dependents()


@lru_cache(maxsize=1)
def launch_options() -> dict[str, int | bool]:
    """What every launch of a kernel that begins with ``wait_for_inputs`` is given."""
    interpreted = bool(triton.knobs.runtime.interpret)
    able = not interpreted and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    overlap = int(os.environ.get("QSPEC_GPU_OVERLAP", "1")) if able else 0
    return {"OVERLAP": overlap, "launch_pdl": overlap > 0}
