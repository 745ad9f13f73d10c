"""The quantisation methods as an enumeration, for those who prefer names that a type checker knows."""

from __future__ import annotations

from enum import Enum


class QuantizationMethod(str, Enum):
    """How a model's weights and activations are kept; ``qspec.quant.methods.METHODS`` describes each.

    Every function that takes a method takes its name as well: ``QuantizationMethod.W8A8`` and ``"w8a8"`` are equal.
    """

    NONE = "none"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"
    FP4 = "fp4"
    W8A8 = "w8a8"
    W4A8 = "w4a8"

    def __str__(self) -> str:
        return self.value
