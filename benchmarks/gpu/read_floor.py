"""How long a kernel takes that only reads so many bytes: what every kernel is held against."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from benchmarks.gpu.timing import microseconds
from benchmarks.gpu.weights import read_all

_PAGE = 16384
_ROTATED = 320 << 20
"""Bytes of all copies: several times what the L2 cache holds."""
_MOST_COPIES = 64


@lru_cache(maxsize=256)
def read_us(size: int, device: torch.device) -> float:
    """µs to read ``size`` bytes, rounded up to 16 KiB, from memory that no cache holds, launch included."""
    size = max(-(-size // _PAGE), 1) * _PAGE
    count = max(2, min(_MOST_COPIES, -(-_ROTATED // size))) if device.type == "cuda" else 2
    copies = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(count)]
    out = torch.empty(size // _PAGE, dtype=torch.int32, device=device)
    return microseconds([partial(read_all, copy, out) for copy in copies], device)
