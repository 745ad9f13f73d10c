"""int8 × int8 linear layers on a CPU, with a scale per output channel and a scale per token.

fbgemm multiplies unsigned 8-bit activations by signed 8-bit weights and adds in 32 bits, exactly. Its own dynamic
quantisation scales a whole batch by its largest element, which ruins the other rows when one is large (28 % error
seen); here every row is divided by its own absolute maximum first, quantised with the constant scale 1/127, and
multiplied back. A single row is its own batch: fbgemm's scale, from the row's smallest to its largest element, is then
a scale per token already, and a little finer. On processors without VNNI the instruction used saturates when two
products add up past 16 bits; a probe finds that out, and activations then keep 7 bits.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qspec.errors import InvalidInput

_ENGINES = ("x86", "fbgemm")
_FULL_RANGE = 127
_REDUCED_RANGE = 63
_DYNAMIC_PRODUCT = torch.ops.quantized.linear_dynamic.default
_STATIC_PRODUCT = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default


class Int8Linear:
    """``x @ weightᵀ + bias`` with int8 weights and activations: ``[rows, in] -> [rows, out]`` float32.

    ``codes``: ``[out, in]`` int8 in -127..127, ``scales``: ``[out]`` float32. The packed copy is private memory.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        self._packed = _pack(codes, scales)
        self._bias = bias
        self._levels = activation_levels()
        self.bytes = codes.numel() + 4 * scales.numel()

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            y: Tensor = _DYNAMIC_PRODUCT(x, self._packed, self._levels != _FULL_RANGE)
            return y if self._bias is None else y.add_(self._bias)
        absmax = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)  # [rows, 1]
        divisor = absmax.clamp(min=torch.finfo(torch.float32).tiny)
        y = _product(x / divisor, self._packed, self._levels).mul_(absmax)
        return y if self._bias is None else y.add_(self._bias)


def has_kernel() -> bool:
    """Whether this build of torch has the library that the layers need."""
    return any(engine in torch.backends.quantized.supported_engines for engine in _ENGINES)


@lru_cache(maxsize=1)
def activation_levels() -> int:
    """Largest activation code: 127, or 63 where the processor's 8-bit products saturate. Needs fbgemm."""
    codes = torch.full((16, 64), 127, dtype=torch.int8)
    packed = _pack(codes, torch.ones(16))
    exact = 64 * 127.0
    result = _product(torch.ones(2, 64), packed, _FULL_RANGE)
    return _FULL_RANGE if bool(((result - exact).abs() < 1e-2).all()) else _REDUCED_RANGE


def _pack(codes: Tensor, scales: Tensor) -> Any:
    """fbgemm's packed weight."""
    quantized = torch.backends.quantized
    if quantized.engine not in _ENGINES and (usable := [e for e in _ENGINES if e in quantized.supported_engines]):
        quantized.engine = usable[0]
    if quantized.engine not in _ENGINES:
        raise InvalidInput.field(
            "draft_quantization",
            "w8a8 needs fbgemm, which this build of torch lacks; choose another method, none or off",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*deprecated")
        weight = torch._make_per_channel_quantized_tensor(
            codes.contiguous(), scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0
        )
        return torch.ops.quantized.linear_prepack(weight, None)


def _product(rows: Tensor, packed: Any, levels: int) -> Tensor:
    """``rows`` in [-1, 1], each quantised to -levels..levels, times the packed weight."""
    product: Tensor = _STATIC_PRODUCT(rows, 1.0 / levels, levels + 1, packed)
    return product
