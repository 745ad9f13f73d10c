"""8-bit floating point, e4m3fn: sign, 4 exponent bits (bias 7), 3 mantissa bits; largest 448, no infinity.

torch's own conversion rounds to nearest even, subnormals included, which the tests check against a search over all
codes; what it does beyond 448 has changed between releases, so values are clamped first. Format: Micikevicius et al.,
"FP8 formats for deep learning" (arXiv 2209.05433), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.quant.groups import require_finite, safe_divisor

LARGEST = 448.0
"""The largest finite value; beyond it codes saturate."""


def encode(values: Tensor, name: str) -> Tensor:
    """The nearest e4m3 number of each fp16 or fp32 value, as ``torch.float8_e4m3fn``.

    ``InvalidInput`` naming ``name`` when a value is NaN or infinite.
    """
    require_finite(values, name)
    return values.float().clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def decode(codes: Tensor) -> Tensor:
    """``torch.float8_e4m3fn`` as fp32, exactly."""
    return codes.to(torch.float32)


def quantize_rows(values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Codes ``[rows, K]`` and fp32 scales ``[rows, 1]``: each row's largest magnitude becomes 448.

    For weights a row is an output channel, for activations a token. A row of zeros has scale 0. Raises as ``encode``.
    """
    require_finite(values, name)
    values = values.float().contiguous()
    scales = values.abs().amax(-1, keepdim=True) / LARGEST
    return encode(values / safe_divisor(scales), name), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The values that ``quantize_rows`` stands for, fp32."""
    return decode(codes) * scales
