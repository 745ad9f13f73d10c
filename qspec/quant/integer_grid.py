"""The values that a group of weights may take: evenly spaced, with a scale and, when asymmetric, a zero point.

Choosing the grid is apart from choosing the codes on it: a calibration picks both by what they do to a layer's
outputs, while the grids stay those of ``qspec.quant.int4``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.quant.groups import safe_divisor

_SHRINKS = tuple(1.0 - 0.02 * step for step in range(20))
"""Candidate ranges, as shares of the one that holds all weights of a group (clipping, as AWQ's section 3.3 does)."""


@dataclass(frozen=True, slots=True)
class GroupGrid:
    """The grids of some groups; a weight is ``(code - zero) · scale``. Both ``[rows, groups]``, or alike."""

    scales: Tensor
    """Positive."""
    zeros: Tensor
    """Whole numbers, in fp32; 0 when symmetric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerGrid:
    """A 4-bit format's codes and how its groups are fitted."""

    group_size: int
    lowest: int
    highest: int
    symmetric: bool

    def fit(self, groups: Tensor, importance: Tensor) -> GroupGrid:
        """The grid of each group ``[…, group_size]`` with the least rounding error among a few ranges: ``[…]``.

        The error of a weight is squared and counted by ``importance``, which broadcasts against ``groups``.
        """
        best, least = self.cover(groups, 1.0), torch.full(groups.shape[:-1], float("inf"))
        for shrink in _SHRINKS:
            grid = self.cover(groups, shrink)
            rounded = self.values(self.round(groups, grid), grid)
            error = (rounded - groups).square_().mul_(importance).sum(-1)
            better = error < least
            best = GroupGrid(torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros))
            least = torch.minimum(error, least)
        return best

    def round(self, groups: Tensor, grid: GroupGrid) -> Tensor:
        """The nearest codes, in fp32, for groups ``[…, group_size]`` on grids ``[…]``."""
        return self.nearest(groups, grid.scales.unsqueeze(-1), grid.zeros.unsqueeze(-1))

    def nearest(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest codes, in fp32; the arguments broadcast."""
        return torch.round(values / scales).add_(zeros).clamp_(self.lowest, self.highest)

    @staticmethod
    def values(codes: Tensor, grid: GroupGrid) -> Tensor:
        """What codes ``[…, group_size]`` stand for."""
        return (codes - grid.zeros.unsqueeze(-1)) * grid.scales.unsqueeze(-1)

    def cover(self, groups: Tensor, share: float = 1.0) -> GroupGrid:
        """The grid that covers ``share`` of each group's range: ``[…, group_size]`` to ``[…]``."""
        if self.symmetric:
            scales = safe_divisor(groups.abs().amax(-1) * (share / self.highest))
            return GroupGrid(scales, torch.zeros_like(scales))
        low, high = groups.amin(-1).clamp(max=0) * share, groups.amax(-1).clamp(min=0) * share
        scales = safe_divisor((high - low) / (self.highest - self.lowest))
        return GroupGrid(scales, torch.round(-low / scales).clamp_(self.lowest, self.highest))


def int4_grid(weights: str) -> IntegerGrid | None:
    """The grid of a weight format (``qspec.quant.weight_formats``); None for one that is no integer grid of 4 bits."""
    size, _, kind = weights.removeprefix("int4-g").partition("-")
    if not weights.startswith("int4-g") or not size.isdigit() or kind not in ("", "asymmetric"):
        return None
    if kind:
        return IntegerGrid(group_size=int(size), lowest=0, highest=15, symmetric=False)
    return IntegerGrid(group_size=int(size), lowest=-7, highest=7, symmetric=True)
