"""Symmetric int8 weights, one scale per output channel: what a conversion writes for every linear layer.

The bits are those of ``bitsandbytes.functional.int8_vectorwise_quant`` (its "LLM.int8()" weights,
https://arxiv.org/abs/2208.07339, section 2), to which a test compares them: for a row w of ``[out, in]``,
``codes = round(w · (127 / max|w|))``, halves to even; the scale is ``max|w| / 127``, so that ``w ≈ codes · scale``.
A row of zeros, where that divides by zero, gets codes 0 and scale 1. Computed here, so that a worker loads no package
that it does not need for anything else.
"""

from __future__ import annotations

import torch

from qspec.quant import int8


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes ``[out, in]`` (int8) and scales ``[out]`` (fp32) of an fp32 weight ``[out, in]``; ``InvalidInput`` where it
    is not finite.
    """
    codes, scales = int8.quantize(weight, "model")
    return codes, scales[:, 0]
