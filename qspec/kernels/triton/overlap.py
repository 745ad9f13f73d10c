"""Programmatic dependent launch: the next kernel's programs are set up while the one before finishes.

A decoder layer is ten launches of a few microseconds each at small batch, and the gap between two is about one. From
Hopper on, a kernel can be launched before its predecessor is done, if it waits by itself before it touches what that
one writes. Every kernel here lets the next one come once its own inputs are there. So what kernels before its
predecessor wrote is there from the start, and what a pass is told (positions, tiles, block tables) can be read while
waiting: only the first kernel of a pass follows one that writes such (``feedback``), and it reads nothing early.
``QSPEC_GPU_OVERLAP=0`` in the environment turns overlapping off, for measuring. Asking for the weights of a product
before its inputs are there has cost more than it gave.
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
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@lru_cache(maxsize=1)
def launch_options() -> dict[str, int | bool]:
    """What every launch of a kernel that calls ``wait_for_inputs`` is given."""
    interpreted = bool(triton.knobs.runtime.interpret)
    able = not interpreted and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    overlap = able and os.environ.get("QSPEC_GPU_OVERLAP") != "0"
    return {"OVERLAP": int(overlap), "launch_pdl": overlap}
