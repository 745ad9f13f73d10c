"""4-bit floating point, e2m1: sign, 2 exponent bits, 1 mantissa bit. The magnitudes are 0, ½, 1, 1½, 2, 3, 4, 6.

Codes are uint8 below 16: the sign in bit 3, then the index of the magnitude. Halfway between two magnitudes the even
code is taken; beyond 6 codes saturate. Format: OCP Microscaling Formats (MX) 1.0, section 5.3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.quant.groups import require_finite

LARGEST = 6.0
"""The largest magnitude; beyond it codes saturate."""

_MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_VALUES = torch.cat([_MAGNITUDES, -_MAGNITUDES])
_MIDPOINTS = (_MAGNITUDES[1:] + _MAGNITUDES[:-1]) / 2
_UP_TO = torch.where(
    torch.arange(7) % 2 == 0, _MIDPOINTS, torch.nextafter(_MIDPOINTS, torch.zeros(7))
)
"""The largest fp32 magnitude that still becomes magnitude i: the midpoint itself where i is even."""


def encode(values: Tensor, name: str) -> Tensor:
    """The nearest code of each fp16 or fp32 value, uint8; ``InvalidInput`` naming ``name`` for NaN and infinity."""
    require_finite(values, name)
    values = values.float()
    magnitude = torch.bucketize(values.abs(), _UP_TO).to(torch.uint8)
    return magnitude | (torch.signbit(values).to(torch.uint8) << 3)


def decode(codes: Tensor) -> Tensor:
    """The values of uint8 codes below 16, fp32."""
    return _VALUES.index_select(0, codes.flatten().int()).view(codes.shape)
