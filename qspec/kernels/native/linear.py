"""A single linear layer with the native kernels, for any decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.errors import ContractViolation
from qspec.kernels.native.loading import choose_instruction_set, load
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import LayerWeights, native_matrix, weight_shape


class NativeLinear:
    """``quantised(x) @ weightᵀ + bias``: ``[rows, in] -> [rows, out]`` float32; a row's bits depend on it alone."""

    def __init__(
        self, weights: LayerWeights, threads: Threads, *, name: str = "weight", instruction_set: str | None = None
    ) -> None:
        load()
        from qspec.kernels.native import _native

        self._native = _native
        self._weights, self._pool = weights, threads.pool
        self._outputs, self._inputs = weight_shape(weights)
        self._matrix = native_matrix(weights, name)
        self._instruction_set = choose_instruction_set(instruction_set)

    def __call__(self, x: Tensor) -> Tensor:
        """``x``: ``[rows, in]`` float32."""
        if x.dtype is not torch.float32 or x.dim() != 2 or x.shape[1] != self._inputs:
            raise ContractViolation(f"x is {x.dtype} {tuple(x.shape)}, not float32 [rows, {self._inputs}]")
        x = x.contiguous()
        out = x.new_empty(x.shape[0], self._outputs)
        self._native.linear(self._instruction_set, self._matrix, x.data_ptr(), x.shape[0], out.data_ptr(), self._pool)
        return out

    def decoded(self) -> Tensor:
        """The weight ``[out, in]`` as the kernels read it, float32."""
        out = torch.empty(self._outputs, self._inputs)
        self._native.decode_rows(self._instruction_set, self._matrix, out.data_ptr())
        return out
