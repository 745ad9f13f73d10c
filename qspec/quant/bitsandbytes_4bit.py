"""NF4 and FP4, the two 4-bit formats of bitsandbytes, encoded and decoded by bitsandbytes itself.

A code is the number of an entry in a table of 16 values between -1 and 1, which the largest magnitude of each block of
64 inputs scales: NF4's are quantiles of the normal distribution (Dettmers et al. 2023, "QLoRA", arXiv 2305.14314,
section 3 and appendix E), FP4's a sign and small floats. Blocks never reach across rows, because a row is a multiple of
64. The bytes are the library's own, two codes each, the even-numbered one in the **high** nibble, so that its kernels
read them. ``qspec.kernels.reference`` has the tables. The library is imported on use: that takes seconds.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant.groups import require_finite, require_groups
from qspec.quant.methods import METHODS
from qspec.quant.weight_formats import WEIGHT_FORMATS

BLOCK = 64
"""Inputs that share a scale."""


def quantize(values: Tensor, name: str, kind: str) -> tuple[Tensor, Tensor]:
    """Packed codes ``[rows, K / 2]`` uint8 and scales ``[rows, K / 64]`` fp32; ``kind``: ``nf4`` or ``fp4``.

    Each value becomes the nearest entry of the table times the scale. ``InvalidInput`` naming ``name`` when 64 does not
    divide K or a value is NaN or infinite, and one that lists other formats where the library does not run.
    """
    require_finite(values, name)
    rows, groups = values.shape[0], require_groups(values.shape[-1], BLOCK, name)
    packed, state = _functional().quantize_4bit(values.float().contiguous(), blocksize=BLOCK, quant_type=kind)
    return packed.view(rows, -1), state.absmax.view(rows, groups)


def dequantize(packed: Tensor, scales: Tensor, kind: str) -> Tensor:
    """The values ``[rows, K]`` that ``quantize`` stands for, fp32."""
    return _decode(_functional(), packed, scales, kind)


def runs() -> bool:
    """Whether the library is there and works on the CPU."""
    try:
        _functional()
    except InvalidInput:
        return False
    return True


@lru_cache(maxsize=1)
def _functional() -> ModuleType:
    """``bitsandbytes.functional``, once it has decoded a block."""
    try:
        import bitsandbytes.functional as functional

        _decode(functional, torch.zeros(1, BLOCK // 2, dtype=torch.uint8), torch.ones(1, 1), "nf4")
    except (ImportError, OSError, AttributeError, RuntimeError, NotImplementedError) as error:
        there = ", ".join(
            f"int4:{variant.name}" for variant in METHODS["int4"].variants
            if WEIGHT_FORMATS[variant.weights].package is None
        )
        raise InvalidInput.field(
            "nf4, fp4", f"bitsandbytes does not run on this machine ({error}); choose another format: {there}"
        ) from error
    return functional


def _decode(functional: ModuleType, packed: Tensor, scales: Tensor, kind: str) -> Tensor:
    state = functional.QuantState(
        absmax=scales.flatten(), shape=torch.Size((packed.shape[0], 2 * packed.shape[1])), dtype=torch.float32,
        blocksize=BLOCK, quant_type=kind,
    )
    values: Tensor = functional.dequantize_4bit(packed.reshape(-1, 1), state)
    return values
