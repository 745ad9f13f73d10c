"""Asking for a product's first weights while the kernel before it runs.

Between two products of a decoder layer memory idles for some microseconds at small batch: a norm is one program a row,
attention waits for one load after another. So those kernels get spare programs that ask for the lines which the next
product reads first to be brought into the L2 cache, and wait for none of them. Nothing is written, and no bit changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.plane_linear import LINE, PlaneWeight, piece_length
from qspec.kernels.triton.planes import INTERPRETED

_LINE = tl.constexpr(LINE)
_TOGETHER = tl.constexpr(256)
"""Lines that a program asks for at a time."""
SPARE_PROGRAMS = 64
_AT_ONCE = 256
"""Programs of a product that are there from its start, about: two on each of Hopper's multiprocessors."""
_OUTPUTS = 64
"""Of each."""


@triton.jit
def line_offset(index, rows, stride, chunk, LINES: tl.constexpr):
    """Where in a plane the ``index``-th line lies: of each piece of each row the first ``LINES``."""
    row, piece = index // LINES % rows, index // LINES // rows
    return row.to(tl.int64) * stride + piece * chunk + index % LINES * _LINE


@triton.jit
def _bring(pointer):
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointer.to(tl.int64)], dtype=tl.int32, is_pure=False,
            pack=1)


@triton.jit
def ask_ahead(
    program, programs, high, low, rows, stride, chunk, pieces, LINES: tl.constexpr, PLANES: tl.constexpr
):  # fmt: skip
    """The share of spare program ``program`` of ``programs``."""
    count = rows * pieces * LINES
    for first in range(program * _TOGETHER, count, programs * _TOGETHER):
        index = tl.minimum(first + tl.arange(0, _TOGETHER), count - 1)
        offset = line_offset(index, rows, stride, chunk, LINES)
        _bring(high + offset)
        if PLANES == 2:
            _bring(low + offset)


@dataclass(frozen=True, slots=True)
class Ahead:
    """What to ask for: the first ``lines`` of each of some pieces of some rows."""

    weight: PlaneWeight
    rows: int
    chunk: int
    """Inputs of a piece."""
    pieces: int
    lines: int

    @classmethod
    def of(cls, weight: PlaneWeight, split: int, budget: int) -> Ahead | None:
        """What a product in ``split`` pieces reads first, up to ``budget`` bytes; None where that is less than a line
        of each row."""
        outputs, inputs = weight.high.shape
        chunk = piece_length(inputs, split)
        pieces = min(max(_AT_ONCE * _OUTPUTS // outputs, 1), split)
        rows = min(outputs, _AT_ONCE * _OUTPUTS)
        fitting = min(budget // (rows * pieces * cls.planes_of(weight) * LINE), (inputs - chunk * (pieces - 1)) // LINE)
        return cls(weight, rows, chunk, pieces, fitting) if fitting else None

    @staticmethod
    def planes_of(weight: PlaneWeight) -> int:
        """How many tensors are read."""
        return 1 if weight.low is None else 2

    def arguments(self) -> tuple[Tensor, Tensor, int, int, int, int]:
        """What kernels take."""
        high, low = self.weight.high, self.weight.low
        return high, high if low is None else low, self.rows, high.stride(0), self.chunk, self.pieces

    def constants(self) -> dict[str, int]:
        """What kernels are compiled for."""
        return {"LINES": self.lines, "PLANES": self.planes_of(self.weight)}
