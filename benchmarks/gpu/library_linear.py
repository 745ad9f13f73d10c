"""Linear layers over fp16 weights by the library (cuBLAS), in the place of the verifier's own: plain decoding to beat.

The planes stay where they are; beside them lies each weight merged, in the order in which activations come. The library
promises no bits across numbers of rows, so a text of such a verifier is not held to anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from qspec.engine import cuda_decoder
from qspec.engine.cuda_linear import CudaLinear
from qspec.kernels.triton.elementwise import Activations, Pieces
from qspec.kernels.triton.plane_linear import PlaneWeight
from qspec.kernels.triton.planes import merge_into


class LibraryLinear:
    """A layer of the engine's with another product."""

    def __init__(self, layer: CudaLinear) -> None:
        weight = layer.weight
        if not isinstance(weight, PlaneWeight) or weight.low is None:
            raise TypeError("only weights in both planes can be merged")
        self._layer = layer
        self._merged = torch.empty(weight.high.shape, dtype=torch.float16, device=weight.high.device)
        merge_into(weight.high, weight.low, self._merged, rearrange=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def product(self, x: Activations, *_: Any, **__: Any) -> Pieces:
        """Multiply: fp16 ``[1, M, N]``."""
        numbers: Tensor = functional.linear(x.values, self._merged)
        return Pieces(numbers[None], self._layer.scales)


@contextmanager
def library_products() -> Iterator[list[LibraryLinear]]:
    """Have decoders that are made while this is entered multiply by the library; the layers that are made."""
    made: list[LibraryLinear] = []

    def of(*arguments: Any, **named: Any) -> LibraryLinear:
        made.append(LibraryLinear(CudaLinear.of(*arguments, **named)))
        return made[-1]

    with patch.object(cuda_decoder, "CudaLinear", SimpleNamespace(of=of)):
        yield made
