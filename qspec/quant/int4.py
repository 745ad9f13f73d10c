"""4-bit integers in groups of inputs, symmetric and asymmetric, rounded to nearest.

Symmetric: codes -7..7 times a scale; -8 is not used, so that a weight and its negative keep the same magnitude (a
checkpoint that others made may use it).
Asymmetric: codes 0..15 less a zero point 0..15, times a scale; the group's range is widened to hold zero, which then is
exact (Jacob et al. 2018, arXiv 1712.05877, section 2.1).
With a minimum: codes 0..15 times a scale, plus the group's smallest weight in fp32: GGUF's Q4_1 (ggml,
``quantize_row_q4_1_ref``). Codes are packed two to a byte by ``qspec.quant.nibbles``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.quant.groups import require_finite, safe_divisor, scale_groups, split_groups

GROUP_SIZES = (32, 64, 128)
MINIMUM_GROUP_SIZES = (32,)
"""Those with a minimum: what GGUF has."""
_SYMMETRIC_LARGEST = 7
_ASYMMETRIC_LARGEST = 15


def quantize_symmetric(values: Tensor, name: str, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes ``[rows, K]`` int8 in -7..7 and scales ``[rows, K / group_size]`` fp32.

    ``InvalidInput`` naming ``name`` when the group size does not divide K or a value is NaN or infinite.
    """
    require_finite(values, name)
    groups = split_groups(values.float(), group_size, name)
    top = groups.abs().amax(-1)
    scales = top / torch.full_like(top, _SYMMETRIC_LARGEST)  # divided by a number, CUDA multiplies with the reciprocal
    codes = torch.round(groups / safe_divisor(scales).unsqueeze(-1)).clamp_(-_SYMMETRIC_LARGEST, _SYMMETRIC_LARGEST)
    return codes.to(torch.int8).flatten(-2), scales


def dequantize_symmetric(codes: Tensor, scales: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize_symmetric`` stands for, fp32."""
    return scale_groups(codes.float(), scales)


def quantize_asymmetric(values: Tensor, name: str, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[rows, K]`` uint8 in 0..15, scales and zero points ``[rows, K / group_size]`` (fp32, uint8 in 0..15).

    Raises as ``quantize_symmetric``.
    """
    require_finite(values, name)
    groups = split_groups(values.float(), group_size, name)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = high / _ASYMMETRIC_LARGEST - low / _ASYMMETRIC_LARGEST
    divisor = safe_divisor(scales)
    zeros = torch.round(-low / divisor).clamp_(0, _ASYMMETRIC_LARGEST)
    codes = torch.round(groups / divisor.unsqueeze(-1)) + zeros.unsqueeze(-1)
    return codes.clamp_(0, _ASYMMETRIC_LARGEST).to(torch.uint8).flatten(-2), scales, zeros.to(torch.uint8)


def dequantize_asymmetric(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize_asymmetric`` stands for, fp32."""
    size = codes.shape[-1] // scales.shape[-1]
    return scale_groups(codes.float() - zeros.float().repeat_interleave(size, dim=-1), scales)


def quantize_minimum(values: Tensor, name: str, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[rows, K]`` uint8 in 0..15, scales and minima ``[rows, K / group_size]`` fp32.

    Raises as ``quantize_symmetric``, and for a group whose range is beyond fp32.
    """
    require_finite(values, name)
    groups = split_groups(values.float(), group_size, name)
    minima = groups.amin(-1)
    ranges = groups.amax(-1) - minima
    require_finite(ranges, f"{name} (the range of a group)")
    scales = ranges / _ASYMMETRIC_LARGEST
    codes = torch.round((groups - minima.unsqueeze(-1)) / safe_divisor(scales).unsqueeze(-1))
    return codes.clamp_(0, _ASYMMETRIC_LARGEST).to(torch.uint8).flatten(-2), scales, minima


def dequantize_minimum(codes: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize_minimum`` stands for, fp32."""
    size = codes.shape[-1] // scales.shape[-1]
    return scale_groups(codes.float(), scales) + minima.repeat_interleave(size, dim=-1)
