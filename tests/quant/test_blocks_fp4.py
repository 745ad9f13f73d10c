"""NVFP4 and MXFP4: scales by definition, error bounds, rows on their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant import e2m1, e4m3
from qspec.quant.blocks_fp4 import decode_e8m0, dequantize_mxfp4, dequantize_nvfp4, quantize_mxfp4, quantize_nvfp4

MAGNITUDES = st.floats(0, 1e4, width=32).map(lambda value: value if value > 1e-4 else 0.0)
ROWS = st.lists(MAGNITUDES, min_size=64, max_size=64)


def weight(rows: int = 5, inputs: int = 96) -> Tensor:
    """Rows of different sizes."""
    values = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
    return values * torch.logspace(-3, 1, rows)[:, None]


def test_every_e8m0_code_has_torchs_value() -> None:
    codes = torch.arange(255, dtype=torch.int16).to(torch.uint8)
    assert decode_e8m0(codes).tolist() == [2.0 ** (code - 127) for code in range(255)]
    assert torch.equal(decode_e8m0(codes), codes.view(torch.float8_e8m0fnu).float())


def test_nvfp4_is_exact_where_it_can_be() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(3, 2)  # two blocks a row, each with a 6
    scales = torch.tensor([[448.0, 2.0], [1.0, 0.5], [3.5, 0.001953125]])
    values = (e2m1.decode(codes).unflatten(-1, (2, 16)) * scales[..., None]).flatten(-2)
    found, block_scales, scale = quantize_nvfp4(values, "w")
    assert float(scale) == 1.0
    assert torch.equal(e4m3.decode(block_scales), scales)
    assert torch.equal(found, codes)
    assert torch.equal(dequantize_nvfp4(found, block_scales, scale), values)


def test_nvfp4_uses_the_whole_range_of_its_scales() -> None:
    _, block_scales, scale = quantize_nvfp4(weight(), "w")
    assert scale.shape == (1, 1)
    assert float(e4m3.decode(block_scales).max()) == e4m3.LARGEST


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ROWS)
def test_nvfp4_comes_back_within_its_bound(row: list[float]) -> None:
    values = torch.tensor(row).view(1, -1) * torch.tensor([1.0, -1.0]).repeat(32)
    codes, block_scales, scale = quantize_nvfp4(values, "w")
    error = (dequantize_nvfp4(codes, block_scales, scale) - values).abs().view(-1, 16)
    largest = values.view(-1, 16).abs().amax(-1, keepdim=True)
    # The widest gap of e2m1 is 2 of 6, so half of it is a sixth; a scale rounded down by 1/17 saturates by that much;
    # blocks below the smallest scale are lost.
    assert bool((error <= largest * (1 / 6 * (1 + 1 / 16) + 1e-3) + 6 * 2.0**-9 * scale).all())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ROWS)
def test_mxfp4_comes_back_within_its_bound(row: list[float]) -> None:
    values = torch.tensor(row).view(1, -1) * torch.tensor([1.0, -1.0]).repeat(32)
    codes, scales = quantize_mxfp4(values, "w")
    error = (dequantize_mxfp4(codes, scales) - values).abs().view(-1, 32)
    largest = values.view(-1, 32).abs().amax(-1, keepdim=True)
    assert bool((error <= largest / 4 + 1e-30).all()), "8 saturates to 6: a quarter"


def test_mxfp4_scales_follow_the_standard() -> None:
    """floor(log2(max)) - 2, for maxima at and just below powers of two."""
    largest = torch.tensor([4.0, 7.9999995, 8.0, 1.0, 0.75, 2.0**-140, 3e38])
    values = torch.zeros(len(largest), 32)
    values[:, 7] = largest
    _, scales = quantize_mxfp4(values, "w")
    assert (scales[:, 0].int() - 127).tolist() == [0, 0, 1, -2, -3, -127, 125]


def test_a_row_is_quantised_on_its_own() -> None:
    values = weight()
    for alone, together in zip(
        (quantize_nvfp4(values[2:3], "x", per_row=True), quantize_mxfp4(values[2:3], "x")),
        (quantize_nvfp4(values, "x", per_row=True), quantize_mxfp4(values, "x")), strict=True,
    ):
        for part, of_all in zip(alone, together, strict=True):
            assert torch.equal(part.float(), of_all[2:3].float())


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(2, 32)
    assert torch.equal(dequantize_nvfp4(*quantize_nvfp4(zeros, "w")), zeros)
    assert torch.equal(dequantize_mxfp4(*quantize_mxfp4(zeros, "w")), zeros)


@pytest.mark.parametrize(("quantize", "block"), [(quantize_nvfp4, 16), (quantize_mxfp4, 32)])
def test_bad_input_is_named(quantize: type, block: int) -> None:
    with pytest.raises(InvalidInput, match=rf"mlp_in: groups of {block} do not divide its 40 inputs"):
        quantize(torch.ones(2, 40), "mlp_in")
    with pytest.raises(InvalidInput, match="mlp_in"):
        quantize(torch.full((2, block), float("inf")), "mlp_in")
