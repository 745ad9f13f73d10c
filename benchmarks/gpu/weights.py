"""Copies of a random weight in planes, and of what other kernels read, enough of them that no cache holds all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.kernels.triton.plane_linear import PlaneWeight, row_stride
from qspec.quant.planes import merge_fp16, scale_rows, split_fp16

_BYTES = 320 << 20
"""What the planes of all copies take at least: several times the L2 cache."""


@dataclass(frozen=True)
class WeightCopies:
    """The same random rows, rotated by another number in each copy, so that one split serves all."""

    planes: tuple[PlaneWeight, ...]

    @classmethod
    def random(cls, outputs: int, inputs: int, device: torch.device, copies: int | None = None) -> WeightCopies:
        """Normal weights of the size that models have, a few rows of them larger than planes hold."""
        if copies is None:
            copies = max(2, min(16, -(-_BYTES // (2 * outputs * inputs))))
        weight = torch.randn(outputs, inputs, device=device).div_(64)
        weight[3::1000] *= 40
        scaled = scale_rows(weight, "weight")
        del weight
        high, low = split_fp16(scaled.rows, "weight")
        scales = scaled.scales.squeeze(1)
        return cls(tuple(
            PlaneWeight(_in_lines(high, copy), _in_lines(low, copy), scales.roll(copy)) for copy in range(copies)
        ))

    @cached_property
    def high(self) -> tuple[PlaneWeight, ...]:
        """The high planes alone."""
        return tuple(PlaneWeight(plane.high, None, plane.scales) for plane in self.planes)

    @cached_property
    def fp16(self) -> tuple[Tensor, ...]:
        """The weights as a library reads them, without the rows' scales."""
        return tuple(merge_fp16(plane.high, plane.low) for plane in self.planes if plane.low is not None)

    def exact(self, copy: int) -> Tensor:
        """What a copy stands for, float64."""
        return self.fp16[copy].double() * self.planes[copy].scales.double()[:, None]


def _in_lines(plane: Tensor, shift: int) -> Tensor:
    """The rows rotated by ``shift``, each beginning with a line of memory; what lies between them must not matter."""
    rows, inputs = plane.shape
    padded = torch.full((rows, row_stride(inputs)), 0x7F, dtype=torch.uint8, device=plane.device)
    padded[:, :inputs] = plane.view(torch.uint8).roll(shift, 0)
    return padded[:, :inputs]


def memory_of(plane: Tensor) -> Tensor:
    """All bytes that a plane lies in, those between its rows included."""
    rows, between = plane.shape[0], plane.stride(0)
    return plane.as_strided((rows * between,), (1,))


@triton.jit
def _read(numbers, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + tl.program_id(0), tl.max(tl.load(numbers + at, mask=at < count, other=0), 0))


def read_all(bytes_: Tensor, out: Tensor) -> None:
    """Read every byte once and do almost nothing with it; ``out``: int32, one number for each 16 KiB."""
    words = bytes_.view(-1).view(torch.int32)
    block = 4096
    _read[(triton.cdiv(words.numel(), block),)](words, out, words.numel(), BLOCK=block, num_warps=4)
