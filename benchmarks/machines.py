"""Cost tables to simulate with: the shapes that matter, with times of the order that was measured or published.

``cpu``: SmolLM2-135M on two cores, w8a8 draft and fp32 verification. ``memory-bound``: an 8-billion model on a large
GPU, whose weights are read from memory once a pass, however few the rows. ``compute-bound``: the same where rows cost
what they compute, as with long batches. ``slow-drafter``: drafting a token costs what verifying it does. ``h200-x7``: a
model of 5.4 billion weights (``benchmarks.widen``, factor 7) in fp16 on an H200, drafted with the high plane, as
measured (``benchmarks/gpu/results/h200-decode.json``, medians of calls at batches of 1, 8 and 32).
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from qspec.cost_table import CalibratedCosts, Points
from qspec.errors import InvalidInput

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
_NUMBERS = ("draft_call_s", "verify_context_s", "draft_context_s", "prefill_context_s")


def _roofline(counts: tuple[int, ...], fixed_s: float, memory_s: float, row_s: float) -> Points:
    """Reading the weights and computing rows overlap: the longer decides, with a soft knee."""
    return tuple((count, fixed_s + math.hypot(memory_s, count * row_s)) for count in counts)


MACHINES = {
    "cpu": CalibratedCosts(
        verify=_roofline(_ROWS, 0.012, 0.030, 0.0035), draft_step=_roofline(_SEQUENCES, 0.008, 0.012, 0.002),
        draft_call_s=0.0015, verify_context_s=2e-6, draft_context_s=2e-6),
    "memory-bound": CalibratedCosts(
        verify=_roofline(_ROWS, 0.0008, 0.0072, 0.00002), draft_step=_roofline(_SEQUENCES, 0.0004, 0.0038, 0.00002),
        draft_call_s=0.0003, verify_context_s=2e-8, draft_context_s=2e-8),
    "compute-bound": CalibratedCosts(
        verify=_roofline(_ROWS, 0.0008, 0.0072, 0.0009), draft_step=_roofline(_SEQUENCES, 0.0004, 0.0038, 0.00045),
        draft_call_s=0.0003, verify_context_s=2e-8, draft_context_s=2e-8),
    "h200-x7": CalibratedCosts(
        verify=((1, 0.00399), (5, 0.00407), (8, 0.00415), (24, 0.00457), (40, 0.00510), (64, 0.00599), (96, 0.00766)),
        draft_step=((1, 0.00234), (8, 0.00260), (32, 0.00342)), draft_call_s=0.00005),
    "slow-drafter": CalibratedCosts(
        verify=_roofline(_ROWS, 0.0008, 0.0072, 0.00002), draft_step=_roofline(_SEQUENCES, 0.0008, 0.0072, 0.00002),
        draft_call_s=0.0003, verify_context_s=2e-8, draft_context_s=2e-8),
}


def read_machine(name: str) -> CalibratedCosts:
    """A named machine, or one from a JSON file with the fields of ``CalibratedCosts``. ``InvalidInput``."""
    if name in MACHINES:
        return MACHINES[name]
    path = Path(name)
    if not path.is_file():
        raise InvalidInput.field("--machine", f"{name} is neither a file nor one of {', '.join(MACHINES)}")
    try:
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        verify, draft_step = _points(fields.pop("verify")), _points(fields.pop("draft_step"))
        prefill_row = _points(fields.pop("prefill_row")) if "prefill_row" in fields else ()
        numbers = {name: float(fields.pop(name, 0.0)) for name in _NUMBERS}
        if fields:
            raise ValueError(f"there is no {', '.join(fields)}")
        return CalibratedCosts(verify=verify, draft_step=draft_step, prefill_row=prefill_row, **numbers)
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput.field("--machine", f"{name} is no cost table: {error}") from error


def _points(pairs: list[tuple[int, float]]) -> Points:
    points = tuple((int(count), float(seconds)) for count, seconds in pairs)
    rising = all(one < other for (one, _), (other, _) in itertools.pairwise(points))
    if not points or not rising or any(count < 1 or not 0 < s < math.inf for count, s in points):
        raise ValueError("a curve needs pairs of a rising count and positive seconds")
    return points
