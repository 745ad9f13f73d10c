"""torch's own product over 4-bit weights in groups (tinygemm): what ours is held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_INNER_TILES = (8, 4, 2)
"""Of the packed form: so many tiles of 16 inputs lie together, as many as the inputs can be divided by."""
_TILE_INPUTS = 16
_MIDDLE = 8
"""Code of a group's zero."""


@dataclass(frozen=True)
class LibraryInt4:
    """A weight ``[N, K]`` as the library packs it."""

    packed: Tensor
    scales_and_zeros: Tensor
    """bf16 ``[K / group, N, 2]``."""
    group: int
    codes: Tensor
    """uint8 0…15 of the first outputs, for ``exact``."""

    @classmethod
    def random(cls, outputs: int, inputs: int, group: int, device: torch.device) -> LibraryInt4:
        """Random codes."""
        codes = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8, device=device)
        tiles = next(count for count in _INNER_TILES if inputs % (count * _TILE_INPUTS) == 0)
        packed = torch._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], tiles)
        scales = torch.rand(inputs // group, outputs, 1, device=device) / 100 + 0.001
        both = torch.cat([scales, torch.zeros_like(scales)], 2).bfloat16().contiguous()
        return cls(packed, both, group, codes[:2048].clone())

    def product(self, x: Tensor) -> Tensor:
        """``[M, N]`` bf16 of ``x`` ``[M, K]`` bf16."""
        return torch._weight_int4pack_mm(x, self.packed, self.group, self.scales_and_zeros)

    def exact(self) -> Tensor:
        """float64, of the first outputs."""
        scales = self.scales_and_zeros[:, : len(self.codes), 0].t().double().repeat_interleave(self.group, 1)
        return (self.codes.double() - _MIDDLE) * scales
