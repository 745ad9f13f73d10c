"""e2m1 numbers in blocks that share a scale: NVFP4 and MXFP4, for weights and activations alike.

- NVFP4: blocks of 16 with an e4m3 scale each, and one fp32 scale for the tensor, so chosen that the largest block's
  scale is 448. For activations "the tensor" is a row, so that no token depends on another. ("Pretraining large
  language models with NVFP4", arXiv 2509.25149, section 2.)
- MXFP4: blocks of 32 with a power-of-two scale each, stored as e8m0 (exponent + 127): the exponent of the block's
  largest magnitude less that of e2m1's (OCP Microscaling Formats (MX) 1.0, section 6.3). Magnitudes between 6 and 8
  times the scale saturate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.quant import e2m1, e4m3
from qspec.quant.groups import require_finite, safe_divisor, scale_groups, split_groups

NVFP4_BLOCK = 16
MXFP4_BLOCK = 32
_E8M0_BIAS = 127
_E2M1_LARGEST_EXPONENT = 2


def quantize_nvfp4(values: Tensor, name: str, *, per_row: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``[rows, K]`` uint8, block scales ``[rows, K / 16]`` e4m3, and the fp32 scale ``[1, 1]`` or ``[rows, 1]``.

    ``InvalidInput`` naming ``name`` when 16 does not divide K or a value is NaN or infinite.
    """
    require_finite(values, name)
    blocks = split_groups(values.float(), NVFP4_BLOCK, name)  # [rows, blocks, 16]
    largest = blocks.abs().amax(-1)  # [rows, blocks]
    whole = largest.amax(-1, keepdim=True) if per_row else largest.amax().view(1, 1)
    scale = safe_divisor(whole / (e2m1.LARGEST * e4m3.LARGEST))
    block_scales = e4m3.encode(largest / e2m1.LARGEST / scale, name)
    divisor = safe_divisor(e4m3.decode(block_scales) * scale).unsqueeze(-1)
    return e2m1.encode(blocks / divisor, name).flatten(-2), block_scales, scale


def dequantize_nvfp4(codes: Tensor, block_scales: Tensor, scale: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize_nvfp4`` stands for, fp32."""
    return scale_groups(e2m1.decode(codes), e4m3.decode(block_scales) * scale)


def quantize_mxfp4(values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Codes ``[rows, K]`` uint8 and e8m0 scales ``[rows, K / 32]`` uint8.

    ``InvalidInput`` naming ``name`` when 32 does not divide K or a value is NaN or infinite.
    """
    require_finite(values, name)
    blocks = split_groups(values.float(), MXFP4_BLOCK, name)
    exponents = torch.frexp(blocks.abs().amax(-1)).exponent - 1 - _E2M1_LARGEST_EXPONENT
    exponents = exponents.clamp(-_E8M0_BIAS, _E8M0_BIAS)
    codes = e2m1.encode(blocks / _power_of_two(exponents).unsqueeze(-1), name).flatten(-2)
    return codes, (exponents + _E8M0_BIAS).to(torch.uint8)


def dequantize_mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """The values ``[rows, K]`` that ``quantize_mxfp4`` stands for, fp32."""
    return scale_groups(e2m1.decode(codes), decode_e8m0(scales))


def decode_e8m0(codes: Tensor) -> Tensor:
    """``2 ** (code - 127)`` of codes 0..254, fp32; 255 means NaN in the format and is never written here."""
    return _power_of_two(codes.int() - _E8M0_BIAS)


def _power_of_two(exponents: Tensor) -> Tensor:
    """``2 ** exponents``, exactly, for -127..127: two factors, because no single one may lie below fp32's normals."""
    half = exponents // 2
    return torch.exp2(half.double()).mul(torch.exp2((exponents - half).double())).float()
