"""Symmetric 8-bit integers: codes -127..127 and a scale per output channel, or per group of inputs.

The per-channel form is what a conversion writes (``qspec.models.int8_weights``); here any tensor can be quantised, a
group being what a channel is there. A group of zeros has codes 0 and scale 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.quant.groups import require_finite, safe_divisor, scale_groups, split_groups

LARGEST = 127
GROUP_SIZES = (64, 32, 128)
"""32 is what GGUF has (Q8_0)."""


def quantize(values: Tensor, name: str, group_size: int | None = None, largest: int = LARGEST) -> tuple[Tensor, Tensor]:
    """Codes ``[rows, K]`` int8, rounded to nearest even, and scales ``[rows, K / group_size]`` fp32.

    Without ``group_size`` a row is one group (``[rows, 1]``). ``InvalidInput`` naming ``name`` when the group size
    does not divide K or a value is NaN or infinite.
    """
    require_finite(values, name)
    groups = split_groups(values.float(), group_size or values.shape[-1], name)
    top = groups.abs().amax(-1)
    # w · (127 / max) as in a conversion; w / (max / 127) rounds some ties the other way.
    codes = torch.round(groups * (largest / safe_divisor(top)).unsqueeze(-1))
    scales = top / torch.full_like(top, largest)  # divided by a number, CUDA multiplies with the reciprocal
    return codes.clamp_(-largest, largest).to(torch.int8).flatten(-2), torch.where(top > 0, scales, 1.0)


def dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize`` stands for, fp32."""
    return scale_groups(codes.float(), scales)
