"""int8 × int8 linear layers against their definition, in dB for one row and exactly for several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qspec.kernels import reference
from qspec.kernels.int8_linear import Int8Linear, activation_levels
from qspec.models.int8_weights import quantize_rows

SHAPES = [(64, 96), (576, 192), (37, 53), (1536, 20)]


def sqnr_db(exact: Tensor, approximate: Tensor) -> float:
    """Signal to quantisation noise, in dB."""
    noise = (exact.double() - approximate.double()).square().sum()
    return 10 * math.log10(float(exact.double().square().sum() / noise))


def layer(inputs: int, outputs: int) -> tuple[Int8Linear, Tensor, Tensor, Tensor, Tensor]:
    """A layer; its fp32 weight ``[out, in]``, codes, scales and bias."""
    generator = torch.Generator().manual_seed(outputs)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    codes, scales = quantize_rows(weight)
    return Int8Linear(codes, scales, bias), weight, codes, scales, bias


def rows_of(count: int, inputs: int, seed: int = 5) -> Tensor:
    """Activations of different sizes."""
    x = torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-2, 2, count)[:, None]


def by_definition(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    """The reference with as many activation levels as this processor multiplies exactly."""
    levels = activation_levels()
    if levels == 127:
        return reference.linear_w8a8(x, codes, scales, bias)
    absmax = x.abs().amax(-1, keepdim=True)
    x_codes = torch.round(x / absmax.clamp(min=1e-38) * levels).long()
    return (x_codes @ codes.long().t()).double() * absmax.double() / levels * scales.double() + bias.double()


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_several_rows_are_exactly_the_definition(inputs: int, outputs: int) -> None:
    linear, _, codes, scales, bias = layer(inputs, outputs)
    x = rows_of(6, inputs)
    expected = by_definition(x, codes, scales, bias)
    error = (linear(x).double() - expected).abs().amax(-1) / (expected - bias.double()).abs().amax(-1)
    assert float(error.max()) < 1e-5


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_single_row_is_close_to_the_definition_and_to_the_exact_product(inputs: int, outputs: int) -> None:
    linear, weight, codes, scales, bias = layer(inputs, outputs)
    lost = 0 if activation_levels() == 127 else 6  # dB of one bit
    for x in rows_of(6, inputs).split(1):
        definition = reference.linear_w8a8(x, codes, scales, None)
        assert sqnr_db(definition, linear(x).double() - bias.double()) > 34 - lost
        exact = reference.linear(x, weight.t(), None)
        assert sqnr_db(exact, linear(x).double() - bias.double()) > 33 - lost


def test_quantised_rows_are_close_to_the_exact_product() -> None:
    linear, weight, _, _, bias = layer(576, 192)
    x = rows_of(5, 576)
    exact = reference.linear(x, weight.t(), None)
    lost = 0 if activation_levels() == 127 else 6
    assert all(
        sqnr_db(row, made) > 33 - lost
        for row, made in zip(exact, linear(x).double() - bias.double(), strict=True)
    )


def test_rows_of_zeros_give_the_bias() -> None:
    linear, _, _, _, bias = layer(64, 96)
    assert torch.equal(linear(torch.zeros(1, 64))[0], bias)
    x = rows_of(3, 64)
    x[1] = 0
    result = linear(x)
    assert torch.equal(result[1], bias)
    assert bool(result.isfinite().all())


def test_a_huge_row_does_not_disturb_the_others() -> None:
    linear, weight, _, _, bias = layer(576, 192)
    x = torch.randn(4, 576, generator=torch.Generator().manual_seed(1))
    before = linear(x)
    x[2] *= 1000
    after = linear(x)
    for row in (0, 1, 3):
        assert torch.equal(after[row], before[row])
    exact = reference.linear(x[2:3], weight.t(), bias)
    assert sqnr_db(exact, after[2:3]) > 27


def test_the_argument_is_left_alone() -> None:
    linear, *_ = layer(64, 96)
    for count in (1, 3):
        x = rows_of(count, 64)
        before = x.clone()
        linear(x)
        assert torch.equal(x, before)


def test_the_probe_knows_the_processor() -> None:
    """With 127 levels the extreme codes multiply exactly; fewer levels are for processors that saturate."""
    codes = torch.full((8, 256), 127, dtype=torch.int8)
    linear = Int8Linear(codes, torch.ones(8), None)
    result = linear(torch.ones(2, 256))
    torch.testing.assert_close(result, torch.full((2, 8), 256 * 127.0), rtol=1e-6, atol=0)
    assert activation_levels() in (63, 127)
