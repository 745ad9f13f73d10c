"""Planes: every fp16 bit pattern up to 1.75, every int8 code up to 119, rows that need a scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant import e4m3
from qspec.quant.planes import (
    HIGH_SCALE,
    merge_fp16,
    merge_int8,
    scale_rows,
    split_fp16,
    split_int8,
)


def splittable() -> Tensor:
    """Every fp16 number with a magnitude up to 1.75: normals, subnormals and both zeros."""
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = words.view(torch.float16)
    return values[values.abs() <= 1.75]


def test_every_fp16_pattern_is_rebuilt() -> None:
    values = splittable()
    assert len(values) == 2 * (0x3F00 + 1)
    high, low = split_fp16(values, "w")
    assert torch.equal(merge_fp16(high, low).view(torch.int16), values.view(torch.int16))


def test_high_is_the_nearest_e4m3_number() -> None:
    """By the words: the kept bits plus the rounding to nearest even."""
    values = splittable()
    high, _ = split_fp16(values, "w")
    words = values.view(torch.int16).int()
    kept, rest = (words >> 7) & 0x7F, words & 0x7F
    rounded = kept + ((rest > 64) | ((rest == 64) & (kept % 2 == 1))).int()
    assert torch.equal(high.view(torch.uint8).int(), rounded | ((words >> 8) & 0x80))
    seen = e4m3.decode(high) * HIGH_SCALE
    normal = values.abs() >= 2.0**-14
    assert float(((seen - values.float()).abs() / values.float().abs())[normal].max()) <= 2.0**-4


@pytest.mark.parametrize("bad", [1.7509765625, -2.0, 65504.0, float("nan"), float("inf")])
def test_what_cannot_be_split_is_refused_by_name(bad: float) -> None:
    with pytest.raises(InvalidInput, match=r"layers\.1\.mlp_in"):
        split_fp16(torch.tensor([[0.5, bad]], dtype=torch.float16), "layers.1.mlp_in")


def test_rows_are_scaled_only_where_they_must_be() -> None:
    weight = torch.tensor([[1.75, -0.5], [1.7501, 0.25], [3.5, 1.0], [-3.501, 1.0], [9.25, 1.0], [0.0, 0.0]])
    scaled = scale_rows(weight, "w")
    assert scaled.scales[:, 0].tolist() == [1, 2, 2, 4, 8, 1]
    assert scaled.rounded == 2, "1.7501 and 3.501 are no fp16 numbers"
    assert float(scaled.rows.abs().max()) <= 1.75


def test_weights_that_fall_into_the_subnormals_are_counted() -> None:
    odd_subnormal = 3 * 2.0**-24
    weight = torch.tensor([[1.0, odd_subnormal], [3.0, odd_subnormal], [3.0, 2 * odd_subnormal]])
    scaled = scale_rows(weight, "w")
    assert scaled.rounded == 1
    with pytest.raises(InvalidInput, match="lm_head"):
        scale_rows(torch.tensor([[float("nan")]]), "lm_head")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_fp16_rows_come_back_but_for_what_is_counted(row: list[float]) -> None:
    weight = torch.tensor([row])
    scaled = scale_rows(weight, "w")
    merged = merge_fp16(*split_fp16(scaled.rows, "w")).float() * scaled.scales
    assert int((merged != weight).sum()) == scaled.rounded
    assert bool(((merged - weight).abs() <= scaled.scales * 2.0**-25).all()), "half a step of the subnormals"


def test_every_int8_code_is_rebuilt() -> None:
    codes = torch.arange(-119, 120, dtype=torch.int8)
    high, low = split_int8(codes, "w")
    assert torch.equal(merge_int8(high, low), codes)
    assert (int(high.min()), int(high.max()), int(low.min()), int(low.max())) == (-7, 7, -8, 7)
    assert torch.equal(high.long(), torch.floor(codes.double() / 16 + 0.5).long())
    for bad in (120, -120, 127, -128):
        with pytest.raises(InvalidInput, match="w: has codes beyond ±119"):
            split_int8(torch.tensor([0, bad], dtype=torch.int8), "w")
