"""Activation-aware scaling: inputs that matter get a finer grid (AWQ, Lin et al. 2024, arXiv 2306.00978, section 3.2).

Multiplying column c of a weight by ``s[c]`` and dividing the input c by it changes nothing, until the weight is
rounded: then the columns with large s lose less. AWQ takes ``s = mean|x|^α`` and searches α for the least error of the
layer's outputs. Who makes the inputs (a norm, or the rows of the layer before) divides by s once and for all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_EXPONENTS = tuple(step / 20 for step in range(20))
"""Candidates for α; 0 changes nothing."""
_LEAST = 1e-4
"""Smallest scale before normalising, as the authors' code has it."""


def input_scales(
    weight: Tensor, products: Tensor, magnitudes: Tensor, rounded: Callable[[Tensor], Tensor]
) -> Tensor:
    """The scales ``[in]`` of a layer's inputs with the least output error; 1 where no scaling helps.

    Args:
        weight: ``[out, in]``, all layers that read the same inputs together.
        products: ``Σ x xᵀ`` of the calibration inputs, ``[in, in]``.
        magnitudes: their mean absolute values, ``[in]``.
        rounded: what a weight ``[out, in]`` becomes in the format that it is for.
    """
    hessian = products.float()
    best, least = torch.ones_like(magnitudes), float("inf")
    for exponent in _EXPONENTS:
        scales = magnitudes.pow(exponent).clamp(min=_LEAST)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = rounded(weight * scales) / scales - weight
        loss = float(((error @ hessian) * error).sum())
        if loss < least:
            best, least = scales, loss
    return best
