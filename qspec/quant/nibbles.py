"""Two 4-bit codes in a byte: the even-numbered one in the low nibble."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """``[..., K]`` uint8 codes below 16, K even, as ``[..., K / 2]`` bytes."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse: ``[..., K / 2]`` bytes as ``[..., K]`` uint8 codes below 16."""
    return torch.stack([packed & 0x0F, packed >> 4], dim=-1).flatten(-2)


def sign_extend(codes: Tensor) -> Tensor:
    """4-bit two's complement codes (uint8 below 16) as int8 in -8..7."""
    return (codes ^ 8).to(torch.int8) - 8


def pack_signed(codes: Tensor) -> Tensor:
    """``[..., K]`` int8 codes in -8..7 as ``[..., K / 2]`` bytes of two's complement codes."""
    return pack_nibbles((codes & 0x0F).to(torch.uint8))


def unpack_signed(packed: Tensor) -> Tensor:
    """The inverse of ``pack_signed``."""
    return sign_extend(unpack_nibbles(packed))
