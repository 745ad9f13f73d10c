"""What the native CPU kernels multiply (no torch here): the data behind their column of the table of methods.

``qspec.kernels.native.weights`` reads the formats; a test holds both to each other.
"""

from __future__ import annotations

from collections.abc import Mapping

NATIVE_WEIGHTS: Mapping[str, str] = {"fp32": "fp32-rows"}
"""Weight formats that are stored in another layout for the native kernels."""

_INTEGER_WEIGHTS = frozenset({
    "int8-row", "int8-g32", "int8-g64", "int8-g128", "int4-plane-g64", "int4-g32-minimum",
    *(f"int4-g{size}{ending}" for size in (32, 64, 128) for ending in ("", "-asymmetric")),
})
"""Weight formats that int8 activations are multiplied with."""
_WEIGHTS = _INTEGER_WEIGHTS | {
    "fp32-rows", "fp16-planes", "e4m3-plane", "e4m3-row", "int8-nibbles-g64", "nf4-g64", "bnb-fp4-g64"
}


def has_native_kernel(weights: str, activations: str) -> bool:
    """Whether there is a kernel for weights and activations of these formats."""
    known = _INTEGER_WEIGHTS if activations == "int8 per token" else _WEIGHTS
    return NATIVE_WEIGHTS.get(weights, weights) in known and activations in {
        "fp32", "int8 per token", "e4m3 per token"
    }
