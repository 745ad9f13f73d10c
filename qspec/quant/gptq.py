"""4-bit codes that keep a layer's outputs instead of its weights, for the inputs of a calibration text.

With inputs x, the error of a row w replaced by q is ``(w - q) H (w - q)ᵀ`` with ``H = Σ x xᵀ``. Three steps lower it:

1. GPTQ (Frantar et al. 2023, arXiv 2210.17323, algorithm 1): columns are rounded one after the other, the column with
   the largest inputs first ("act-order", of the authors' code), and each rounding error is undone by the columns that
   are still to come, over the Cholesky factor of the inverse of H. The groups' grids are fitted beforehand to the
   original weights, errors counted by the diagonal of H, so a group's columns stay together in the format.
2. The scales of a row are set to the least-squares solution for its codes.
3. Coordinate descent (QuantEase, Behdin et al. 2023, arXiv 2309.01885, section 3): each code in turn is set to the best
   one with all others fixed.

Steps 2 and 3 are repeated. The format is that of ``qspec.quant.int4``: only codes and scales
are chosen better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant.groups import require_finite, require_groups
from qspec.quant.integer_grid import GroupGrid, IntegerGrid

_BLOCK = 64
"""Columns whose updates are gathered before they reach the rest (the paper's lazy batches)."""
_ROWS = 8192
"""Rows at once: they are independent of each other, and a vocabulary is long."""
DAMPING = 0.05
"""Share of the mean diagonal that is added to H: the less the calibration text, the more."""
_SWEEPS = 2
_LARGEST_RESCALE = 2.0
"""A scale that least squares would move by more is kept: its group hardly matters, and the solution is noise."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised weight."""

    codes: Tensor
    """``[out, in]`` int8, those of the grid; a weight is ``(code - zero) · scale``."""
    scales: Tensor
    """``[out, groups]`` fp32."""
    zeros: Tensor
    """``[out, groups]`` uint8; all 0 when symmetric."""


def input_products(inputs: Tensor) -> Tensor:
    """``Σ x xᵀ`` of calibration inputs ``[tokens, in]``: ``[in, in]`` float64. Those of several batches add up."""
    return (inputs.t() @ inputs).double()


def gptq(weight: Tensor, products: Tensor, name: str, grid: IntegerGrid) -> Codes:
    """Quantise ``weight`` ``[out, in]`` fp32 for inputs with the ``products`` ``[in, in]`` of ``input_products``.

    ``InvalidInput`` naming ``name`` for a group size that does not divide ``in``, NaN and infinity, and inputs that
    are all zero.
    """
    require_finite(weight, name)
    require_finite(products, f"{name} (calibration inputs)")
    require_groups(weight.shape[1], grid.group_size, name)
    if not bool((products.diagonal() > 0).any()):
        raise InvalidInput.field(name, "the calibration text gives it no input but zeros; give a longer text")
    hessian = _damped(products)
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order]).float()
    parts = [_quantise_rows(rows, hessian.float(), order, factor, grid) for rows in weight.float().split(_ROWS)]
    return Codes(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zeros for part in parts]),
    )


def _quantise_rows(weight: Tensor, hessian: Tensor, order: Tensor, factor: Tensor, grid: IntegerGrid) -> Codes:
    groups = weight.view(weight.shape[0], -1, grid.group_size)
    fitted = grid.fit(groups, hessian.diagonal().view(1, -1, grid.group_size))
    codes = _round_in_order(weight, fitted, order, factor, grid)
    for _ in range(_SWEEPS):
        fitted = GroupGrid(_best_scales(weight, codes, fitted, hessian), fitted.zeros)
        codes = _descend(weight, codes, fitted, hessian, grid)
    return Codes(codes.to(torch.int8), fitted.scales, fitted.zeros.to(torch.uint8))


def _per_column(values: Tensor, size: int) -> Tensor:
    """``[rows, groups]`` as ``[in, rows]``, contiguous: what follows goes column by column."""
    return values.repeat_interleave(size, dim=1).t().contiguous()


def _round_in_order(
    weight: Tensor, fitted: GroupGrid, order: Tensor, factor: Tensor, grid: IntegerGrid
) -> Tensor:
    """GPTQ: codes ``[rows, in]``, in fp32."""
    left = weight.t()[order].contiguous()
    scales, zeros = (_per_column(part, grid.group_size)[order] for part in (fitted.scales, fitted.zeros))
    codes = torch.empty_like(left)
    for start in range(0, left.shape[0], _BLOCK):
        stop = min(start + _BLOCK, left.shape[0])
        errors = torch.empty(stop - start, left.shape[1])
        for column in range(start, stop):
            code = grid.nearest(left[column], scales[column], zeros[column])
            codes[column] = code
            error = (left[column] - (code - zeros[column]) * scales[column]) / factor[column, column]
            left[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        left[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return codes[torch.argsort(order)].t().contiguous()


def _best_scales(weight: Tensor, codes: Tensor, fitted: GroupGrid, hessian: Tensor) -> Tensor:
    """The scales ``[rows, groups]`` with the least output error for given codes: one small system per row."""
    rows, groups = fitted.scales.shape
    units = (codes.view(rows, groups, -1) - fitted.zeros.unsqueeze(-1))  # what a scale of 1 would stand for
    size = units.shape[-1]
    target = ((weight @ hessian).view(rows, groups, size) * units).sum(-1)
    system = torch.stack([
        ((units[:, group] @ hessian[group * size : (group + 1) * size]).view(rows, groups, size) * units).sum(-1)
        for group in range(groups)
    ], dim=1)
    diagonal = system.diagonal(dim1=1, dim2=2)
    diagonal.add_(1e-4 * diagonal.mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny)
    solved = torch.linalg.solve(system, target)
    ratio = solved / fitted.scales
    return torch.where((ratio > 1 / _LARGEST_RESCALE) & (ratio < _LARGEST_RESCALE), solved, fitted.scales)


def _descend(weight: Tensor, codes: Tensor, fitted: GroupGrid, hessian: Tensor, grid: IntegerGrid) -> Tensor:
    """One sweep of coordinate descent over the codes ``[rows, in]``."""
    scales, zeros = (_per_column(part, grid.group_size) for part in (fitted.scales, fitted.zeros))
    chosen = codes.t().contiguous()
    gradient = hessian @ (weight.t() - (chosen - zeros) * scales)  # half of the negative one, [in, rows]
    for start in range(0, chosen.shape[0], _BLOCK):
        stop = min(start + _BLOCK, chosen.shape[0])
        block, changes = gradient[start:stop].clone(), torch.empty(stop - start, chosen.shape[1])
        for column in range(start, stop):
            before = (chosen[column] - zeros[column]) * scales[column]
            wanted = before + block[column - start] / hessian[column, column]
            code = grid.nearest(wanted, scales[column], zeros[column])
            change = before - (code - zeros[column]) * scales[column]
            chosen[column] = code
            changes[column - start] = change
            block.addr_(hessian[start:stop, column], change)
        gradient.addmm_(hessian[:, start:stop], changes)
    return chosen.t().contiguous()


def _damped(products: Tensor) -> Tensor:
    damped = products.clone()
    damped.diagonal().add_(DAMPING * damped.diagonal().mean())
    return damped


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse: ``[in, in]`` float64."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
