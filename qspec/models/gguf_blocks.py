"""Blocks of GGUF files that one of our formats holds as they are: Q4_0, Q4_1 and Q8_0.

Each is 32 adjacent inputs: an fp16 scale, for Q4_1 an fp16 minimum, then the codes. A byte of 4-bit codes holds input i
in its low and input i + 16 in its high nibble. A weight is ``d · (q - 8)``, ``d · q + m`` and ``d · q``. Source: ggml,
``ggml-common.h`` (``block_q4_0``, ``block_q4_1``, ``block_q8_0``) and ``dequantize_row_*`` in ``ggml-quants.c``.
"""

from __future__ import annotations

from collections.abc import Mapping

import gguf
import numpy as np
import torch
from torch import Tensor

from qspec.models.packed_weight import Offset, PackedWeight, Packing

BLOCK = 32

PACKINGS: Mapping[gguf.GGMLQuantizationType, Packing] = {
    gguf.GGMLQuantizationType.Q4_0: Packing(description="Q4_0", bits=4, group_size=BLOCK),
    gguf.GGMLQuantizationType.Q4_1: Packing(description="Q4_1", bits=4, group_size=BLOCK, offset=Offset.MINIMUM),
    gguf.GGMLQuantizationType.Q8_0: Packing(description="Q8_0", bits=8, group_size=BLOCK),
}
"""The types that are read without dequantising."""

_FLOATS = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16,
           gguf.GGMLQuantizationType.F64)


def packing_of(kind: gguf.GGMLQuantizationType) -> Packing | None:
    """The packing of a tensor type: None for floating point, one without groups for what no format of ours holds."""
    return None if kind in _FLOATS else PACKINGS.get(kind, Packing(description=kind.name))


def unpack_blocks(data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: gguf.GGMLQuantizationType,
                  inputs: int) -> PackedWeight:
    """The codes ``[out, in]`` of a tensor of a type in ``PACKINGS`` from its bytes."""
    blocks = torch.from_numpy(np.array(data, dtype=np.uint8)).view(-1, inputs // BLOCK, _block_bytes(kind))
    scales, rest = _fp16(blocks[..., :2]), blocks[..., 2:]
    if kind is gguf.GGMLQuantizationType.Q8_0:
        return PackedWeight(codes=rest.contiguous().view(torch.int8).flatten(-2), scales=scales)
    if kind is gguf.GGMLQuantizationType.Q4_1:
        return PackedWeight(codes=_nibbles(rest[..., 2:]), scales=scales, offsets=_fp16(rest[..., :2]))
    return PackedWeight(codes=_nibbles(rest).to(torch.int8) - 8, scales=scales)


def _block_bytes(kind: gguf.GGMLQuantizationType) -> int:
    length: int = gguf.GGML_QUANT_SIZES[kind][1]
    return length


def _fp16(pairs: Tensor) -> Tensor:
    """``[out, blocks, 2]`` bytes as fp32 ``[out, blocks]``."""
    return pairs.contiguous().view(torch.float16).float().squeeze(-1)


def _nibbles(packed: Tensor) -> Tensor:
    """``[out, blocks, 16]`` bytes as codes ``[out, in]``: all low nibbles of a block, then all high ones."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=-1).flatten(-2)
