"""Activation formats as fake quantisation: fp32 values that hold exactly what the format would.

Every one works on a row (a token) at a time, so a row's bits do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from qspec.quant import e4m3, int8
from qspec.quant.blocks_fp4 import dequantize_mxfp4, dequantize_nvfp4, quantize_mxfp4, quantize_nvfp4

_NAME = "activations"
"""What an error calls them."""


def _int8(x: Tensor) -> Tensor:
    return int8.dequantize(*int8.quantize(x, _NAME))


def _e4m3(x: Tensor) -> Tensor:
    return e4m3.dequantize_rows(*e4m3.quantize_rows(x, _NAME))


def _nvfp4(x: Tensor) -> Tensor:
    return dequantize_nvfp4(*quantize_nvfp4(x, _NAME, per_row=True))


def _mxfp4(x: Tensor) -> Tensor:
    return dequantize_mxfp4(*quantize_mxfp4(x, _NAME))


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor] | None] = {
    "fp32": None,
    "int8 per token": _int8,
    "e4m3 per token": _e4m3,
    "nvfp4": _nvfp4,
    "mxfp4": _mxfp4,
}
"""``[rows, K] -> [rows, K]`` by name; None where nothing is quantised."""
