"""GPTQ: 4-bit weights that keep a layer's outputs instead of its weights (Frantar et al. 2023, arXiv 2210.17323).

Rounding a column of the weights makes an error; GPTQ spends the columns that are still to come on undoing it, as far as
the inputs of a calibration text are correlated. Algorithm 1 of the paper, over the Cholesky factor of the inverse
Hessian, in blocks of columns; a group's scale is chosen when its first column is reached, from the weights as they are
by then, as the one of a few candidates with the least squared error (section 4 of the paper leaves the grid open).

The format is that of ``qspec.quant.int4``, symmetric: only codes and scales are chosen better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant.groups import require_finite, safe_divisor

_LARGEST = 7
_BLOCK = 128
_DAMPING = 0.01
"""Share of the mean diagonal that is added to the Hessian, as in the paper."""
_SHRINKS = tuple(1.0 - 0.02 * step for step in range(16))
"""Candidate scales, as shares of the one that holds the group's largest weight."""


def input_hessian(inputs: Tensor) -> Tensor:
    """``2 · Σ x xᵀ`` of calibration inputs ``[tokens, in]``: ``[in, in]`` float64. Those of several batches add up."""
    x = inputs.double()
    return 2.0 * (x.t() @ x)


def gptq_symmetric(weight: Tensor, hessian: Tensor, name: str, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes ``[out, in]`` int8 in -7..7 and scales ``[out, in / group_size]`` fp32 for ``weight`` ``[out, in]``.

    ``hessian``: ``[in, in]`` from ``input_hessian``; an input that never was anything but zero gets code 0.
    ``InvalidInput`` naming ``name`` for a group size that does not divide ``in`` and for NaN or infinity.
    """
    require_finite(weight, name)
    require_finite(hessian, f"{name} (calibration inputs)")
    outputs, inputs = weight.shape
    if inputs % group_size:
        raise InvalidInput.field("group_size", f"{group_size} does not divide the {inputs} inputs of {name}")
    left = weight.double().clone()
    dead = hessian.diagonal() == 0
    left[:, dead] = 0.0
    factor = _inverse_factor(hessian, dead)
    codes = torch.zeros(outputs, inputs, dtype=torch.float64)
    scales = torch.zeros(outputs, inputs // group_size, dtype=torch.float64)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = torch.zeros(outputs, stop - start, dtype=torch.float64)
        for column in range(start, stop):
            group = column // group_size
            if column % group_size == 0:
                # Within the block the columns behind this one are up to date; behind the block they are nearly so.
                scales[:, group] = best_scales(left[:, column : column + group_size])
            scale = scales[:, group]
            code = torch.round(left[:, column] / safe_divisor(scale)).clamp_(-_LARGEST, _LARGEST)
            codes[:, column] = code
            error = (left[:, column] - code * scale) / factor[column, column]
            left[:, column:stop] -= error.unsqueeze(1) * factor[column, column:stop].unsqueeze(0)
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes.to(torch.int8), scales.float()


def best_scales(groups: Tensor) -> Tensor:
    """The scale with the least squared rounding error of each row ``[rows, group]``: ``[rows]``, among ``_SHRINKS``."""
    widest = groups.abs().amax(-1) / _LARGEST
    best, least = widest, torch.full_like(widest, float("inf"))
    for shrink in _SHRINKS:
        scale = widest * shrink
        rounded = torch.round(groups / safe_divisor(scale).unsqueeze(-1)).clamp_(-_LARGEST, _LARGEST)
        error = (rounded * scale.unsqueeze(-1) - groups).square().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _inverse_factor(hessian: Tensor, dead: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse: ``[in, in]`` float64."""
    damped = hessian.double().clone()
    damped.diagonal()[dead] = 1.0
    damped.diagonal().add_(_DAMPING * damped.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
