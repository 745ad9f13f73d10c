"""int8 and int4: round trips, error bounds, zeros, group sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.models.int8_weights import quantize_rows
from qspec.quant import int4, int8

ROWS = st.lists(st.floats(-1e6, 1e6, width=32).map(lambda v: v if abs(v) > 1e-4 else 0.0), min_size=64, max_size=64)


def test_int8_rows_of_a_conversion_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 257, generator=source)
    weight[3] = 0
    weight[4] = torch.arange(257) / 2 - 64  # ties: the largest is 64 and 127 codes
    weight[5] = torch.arange(257) - 127.0
    weight[6] = (torch.arange(257) % 255 - 127) / 2.0
    weight[6, 0] = 127.0
    weight[7] *= 1e-30
    weight[8] *= 1e30
    weight[9:40] = weight[9:40].half().float()
    weight[40:70] = (weight[40:70] * 32).round() / 32  # of a GGUF's few values
    codes, scales = quantize_rows(weight)
    expected, largest, _ = functional.int8_vectorwise_quant(weight.clone())
    empty = largest == 0
    expected[empty] = 0
    assert empty.sum() == 1
    assert torch.equal(codes, expected)
    assert torch.equal(scales, torch.where(empty, 1.0, largest / 127))


@pytest.mark.parametrize("group", [None, 64, 128])
def test_int8_codes_come_back(group: int | None) -> None:
    codes = (torch.arange(4 * 256) % 255 - 127).view(4, 256).to(torch.int8)
    scales = torch.logspace(-3, 2, 4, base=2).round(decimals=3)[:, None]
    values = codes.float() * scales
    found, found_scales = int8.quantize(values, "w", group)
    if group is None:
        assert torch.equal(found, codes)
    else:
        assert found_scales.shape == (4, 256 // group)
    torch.testing.assert_close(int8.dequantize(found, found_scales), values, rtol=0, atol=float(scales.max()) / 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([None, 32, 64]))
def test_int8_comes_back_within_half_a_step(row: list[float], group: int | None) -> None:
    values = torch.tensor([row])
    codes, scales = int8.quantize(values, "w", group)
    steps = scales.repeat_interleave(64 // scales.shape[1], dim=1)
    assert bool(((int8.dequantize(codes, scales) - values).abs() <= steps * 0.5001).all())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ROWS, st.sampled_from([32, 64]))
def test_int4_comes_back_within_half_a_step(row: list[float], group: int) -> None:
    values = torch.tensor([row])
    codes, scales = int4.quantize_symmetric(values, "w", group)
    assert int(codes.abs().max()) <= 7
    steps = scales.repeat_interleave(group, dim=1)
    assert bool(((int4.dequantize_symmetric(codes, scales) - values).abs() <= steps * 0.5001).all())
    unsigned, scales, zeros = int4.quantize_asymmetric(values, "w", group)
    assert int(unsigned.max()) <= 15
    steps = scales.repeat_interleave(group, dim=1)
    back = int4.dequantize_asymmetric(unsigned, scales, zeros)
    assert bool(((back - values).abs() <= steps * 1.0001).all()), "the zero point is rounded, too"
    assert bool((back[values == 0] == 0).all()), "zero is exact"
    unsigned, scales, minima = int4.quantize_minimum(values, "w", group)
    assert int(unsigned.max()) <= 15
    errors = (int4.dequantize_minimum(unsigned, scales, minima) - values).abs()
    steps = scales.repeat_interleave(group, dim=1)
    assert bool((errors <= steps * 0.5001 + values.abs().max() * 1e-6).all())


def test_int4_codes_come_back() -> None:
    symmetric = (torch.arange(64) % 15 - 7).repeat(3, 1)
    codes, scales = int4.quantize_symmetric(symmetric * 0.25, "w", 32)
    assert torch.equal(codes.long(), symmetric)
    assert torch.equal(int4.dequantize_symmetric(codes, scales), symmetric * 0.25)
    unsigned = (torch.arange(64) % 16).repeat(3, 1)
    found, scales, zeros = int4.quantize_asymmetric((unsigned - 5) * 0.25, "w", 32)
    assert torch.equal(found.long(), unsigned)
    assert set(zeros.flatten().tolist()) == {5}
    assert torch.equal(int4.dequantize_asymmetric(found, scales, zeros), (unsigned - 5) * 0.25)
    found, scales, minima = int4.quantize_minimum(unsigned * 0.25 + 3.5, "w", 32)
    assert torch.equal(found.long(), unsigned)
    assert set(minima.flatten().tolist()) == {3.5}, "no zero point could say so"
    assert torch.equal(int4.dequantize_minimum(found, scales, minima), unsigned * 0.25 + 3.5)


def test_minima_of_the_widest_and_of_the_narrowest_group() -> None:
    values = torch.zeros(2, 64)
    values[0, :2] = torch.tensor([-1.6e38, 1.6e38])
    values[1] = -7.25
    codes, scales, minima = int4.quantize_minimum(values, "w", 32)
    assert codes[0, :2].tolist() == [0, 15]
    back = int4.dequantize_minimum(codes, scales, minima)
    assert torch.equal(back[1], values[1]), "a group of equal weights is its minimum"
    assert bool(torch.isfinite(back).all())
    with pytest.raises(InvalidInput, match=r"w \(the range of a group\): contains NaN or infinity"):
        int4.quantize_minimum(values * 2, "w", 32)


def test_groups_of_zeros_stay_zeros() -> None:
    values = torch.zeros(2, 64)
    values[1, 40] = 3.0
    for back in (
        int8.dequantize(*int8.quantize(values, "w")),
        int8.dequantize(*int8.quantize(values, "w", 32)),
        int4.dequantize_symmetric(*int4.quantize_symmetric(values, "w", 32)),
        int4.dequantize_asymmetric(*int4.quantize_asymmetric(values, "w", 32)),
    ):
        torch.testing.assert_close(back, values, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "quantize", [int8.quantize, int4.quantize_symmetric, int4.quantize_asymmetric, int4.quantize_minimum]
)
def test_bad_input_is_named(quantize: Callable[[Tensor, str, int], object]) -> None:
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv: groups of 128 do not divide its 576 inputs"):
        quantize(torch.ones(2, 576), "layers.0.qkv", 128)
    with pytest.raises(InvalidInput, match="lm_head: contains NaN or infinity"):
        quantize(torch.full((2, 64), float("nan")), "lm_head", 64)
