"""Symmetric int8 weights, one scale per output channel.

``bitsandbytes.functional.int8_vectorwise_quant`` does it (its "LLM.int8()" weights,
https://arxiv.org/abs/2208.07339, section 2): for a row w of ``[out, in]``, ``codes = round(w · 127 / max|w|)``, halves
to even, and it returns ``max|w|``; the scale kept here is ``max|w| / 127``, so that ``w ≈ codes · scale``. A row of
zeros, where that divides by zero, gets codes 0 and scale 1.
"""

from __future__ import annotations

import torch

_LARGEST_CODE = 127


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[out, in]`` (int8) and scales ``[out]`` (fp32) of a finite fp32 weight ``[out, in]``."""
    # Imported on use: it takes seconds, and only a conversion needs it.
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, largest, _ = int8_vectorwise_quant(weight.contiguous())
    empty = largest == 0
    codes[empty] = 0
    return codes, torch.where(empty, 1.0, largest / _LARGEST_CODE)
