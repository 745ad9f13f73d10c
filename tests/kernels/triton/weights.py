"""Random weights in planes for the tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.kernels.triton.plane_linear import PlaneWeight
from qspec.quant.planes import merge_fp16, scale_rows, split_fp16


def random_planes(
    outputs: int, inputs: int, source: torch.Generator, device: torch.device
) -> tuple[PlaneWeight, Tensor]:
    """A weight of both planes, a few of its rows scaled, and what it stands for: float64 ``[out, in]``."""
    weight = torch.randn(outputs, inputs, generator=source) / 8
    weight[1::7] *= 40  # beyond 1.75: these rows are divided by a power of two
    scaled = scale_rows(weight, "weight")
    high, low = split_fp16(scaled.rows, "weight")
    assert torch.equal(merge_fp16(high, low).view(torch.int16), scaled.rows.view(torch.int16))
    scales = scaled.scales.squeeze(1).to(device)
    return PlaneWeight(high.view(torch.uint8).to(device), low.to(device), scales), scaled.rows.double() * scaled.scales


def assert_same_row(one: Tensor, other: Tensor) -> None:
    """That two rows have the same bits; in the interpreter, whose products are NumPy's, that they are the same numbers:
    some BLAS add a row up by its place among others.
    """
    if one.is_cuda:
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
