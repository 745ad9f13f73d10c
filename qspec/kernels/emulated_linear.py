"""Linear layers of every format, emulated: the right numbers without the gain.

The weight stays in its format, so that drafter and verifier can share it, and becomes fp32 anew in every call: memory
holds one dequantised matrix at a time, and each call pays for it. Activations go through their format and back. The
product is the library's in fp32, in row tiles where the rows must not depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qspec.kernels.row_tiles import RowTiles, tiled_product

BYTES_PER_WORKING_WEIGHT = 12
"""Bytes per weight of the largest matrix while it is dequantised: the result and about two steps towards it."""


class EmulatedLinear:
    """``quantised(x) @ dequantised weightᵀ + bias``: ``[rows, in] -> [rows, out]`` float32.

    ``decode`` gives the weight ``[out, in]``; ``quantise`` the activations, or None to take them as they are. With
    ``tiles`` the rows are independent of each other, bit for bit.
    """

    def __init__(
        self,
        decode: Callable[[], Tensor],
        bias: Tensor | None,
        quantise: Callable[[Tensor], Tensor] | None,
        tiles: RowTiles | None,
    ) -> None:
        self._decode, self._bias, self._quantise, self._tiles = decode, bias, quantise, tiles

    def __call__(self, x: Tensor) -> Tensor:
        if self._quantise is not None:
            x = self._quantise(x)
        weight = self._decode().t()
        y = x @ weight if self._tiles is None else tiled_product(lambda rows: torch.mm(rows, weight), x, self._tiles)
        return y if self._bias is None else y.add_(self._bias)
