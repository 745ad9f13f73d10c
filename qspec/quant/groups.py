"""Cutting a weight into groups that share a scale, and refusing what no format can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.errors import InvalidInput


def require_finite(values: Tensor, name: str) -> None:
    """``InvalidInput`` naming the tensor when it holds NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise InvalidInput.field(name, "contains NaN or infinity and cannot be quantised; check the model's files")


def require_groups(length: int, size: int, name: str) -> int:
    """How many groups of ``size`` a row of ``length`` has; ``InvalidInput`` when ``size`` does not divide it."""
    if size < 1 or length % size:
        raise InvalidInput.field(
            name, f"groups of {size} do not divide its {length} inputs; choose a group size that divides {length}"
        )
    return length // size


def split_groups(values: Tensor, size: int, name: str) -> Tensor:
    """``[rows, K]`` as ``[rows, K / size, size]``; ``InvalidInput`` when ``size`` does not divide K."""
    groups = require_groups(values.shape[-1], size, name)
    return values.contiguous().view(*values.shape[:-1], groups, size)


def safe_divisor(scales: Tensor) -> Tensor:
    """``scales`` with 1 in place of 0, for groups that hold nothing but zeros."""
    return torch.where(scales > 0, scales, torch.ones_like(scales))


def scale_groups(values: Tensor, scales: Tensor) -> Tensor:
    """``[rows, K]`` with each of the ``scales`` ``[rows, groups]`` multiplied into its group of adjacent values."""
    groups = scales.shape[-1]
    scaled = values.view(*values.shape[:-1], groups, values.shape[-1] // groups) * scales.unsqueeze(-1)
    return scaled.view(values.shape)
