"""Where each tensor lies in an arena.

Regions that the verifier writes come first, those that the drafter writes last and on a page boundary of their own, so
that the drafter can map everything before that boundary read-only: not even a bug in it can spoil a committed entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from qspec.interfaces import Region, RegionWriter

REGION_ALIGNMENT = 64
PAGE = 65536
"""Multiple of every page size in use (4, 16 and 64 KiB)."""
DEVICE_ALIGNMENT = 256
"""What ``cudaMalloc`` gives, and every vector load, tensor map and library kernel of a GPU is content with."""


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A tensor that an arena is to hold."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    writer: RegionWriter = RegionWriter.VERIFIER

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ArenaLayout:
    """Placed regions and the arena's size in bytes."""

    regions: tuple[Region, ...]
    size: int

    @classmethod
    def place(cls, specs: Iterable[RegionSpec], alignment: int = REGION_ALIGNMENT) -> ArenaLayout:
        """Lay out the regions at multiples of ``alignment``: the verifier's, then from a new page the drafter's."""
        regions, offset = [], 0
        ordered = sorted(specs, key=lambda spec: spec.writer is RegionWriter.DRAFTER)
        for index, spec in enumerate(ordered):
            starts_drafter = spec.writer is RegionWriter.DRAFTER and (
                index == 0 or ordered[index - 1].writer is RegionWriter.VERIFIER
            )
            offset = _round_up(offset, PAGE if starts_drafter else alignment)
            dtype = str(spec.dtype).removeprefix("torch.")
            regions.append(
                Region(name=spec.name, dtype=dtype, shape=spec.shape, offset=offset, writer=spec.writer)
            )
            offset += spec.bytes
        return cls(tuple(regions), max(_round_up(offset, PAGE), PAGE))


def writable_boundary(regions: Iterable[Region], size: int) -> int:
    """First byte of the drafter's part of an arena of ``size`` bytes; ``size`` itself when it has none."""
    return min((region.offset for region in regions if region.writer is RegionWriter.DRAFTER), default=size)


def region_bytes(region: Region) -> int:
    """Size of a placed region."""
    dtype: torch.dtype = getattr(torch, region.dtype)
    return math.prod(region.shape) * dtype.itemsize


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
