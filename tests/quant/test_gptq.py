"""Calibrated 4-bit codes against what they must be where that is known, and against rounding where it must lose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant import int4
from qspec.quant.gptq import Codes, gptq, input_products
from qspec.quant.integer_grid import GroupGrid, IntegerGrid, int4_grid

pytestmark = pytest.mark.usefixtures("one_thread")
FORMATS = ("int4-g32", "int4-g64", "int4-g64-asymmetric")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int, width: int) -> Tensor:
    """Inputs that live near a space of a quarter of their width, as hidden states do."""
    return normal(tokens, width // 4, seed=1) @ normal(width // 4, width, seed=2) + 0.1 * normal(tokens, width, seed=3)


def grid_of(weights: str) -> IntegerGrid:
    grid = int4_grid(weights)
    assert grid is not None
    return grid


def dequantise(codes: Codes) -> Tensor:
    groups = codes.codes.float().view(*codes.scales.shape, -1)
    return IntegerGrid.values(groups, GroupGrid(codes.scales, codes.zeros.float())).flatten(-2)


def rounded(weight: Tensor, weights: str) -> Tensor:
    """Round-to-nearest in the same format."""
    size = grid_of(weights).group_size
    if grid_of(weights).symmetric:
        return int4.dequantize_symmetric(*int4.quantize_symmetric(weight, "w", size))
    return int4.dequantize_asymmetric(*int4.quantize_asymmetric(weight, "w", size))


def output_error(weight: Tensor, quantised: Tensor, inputs: Tensor) -> float:
    """Squared error of the layer's outputs, relative."""
    exact = inputs @ weight.t()
    return float((inputs @ quantised.t() - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), [(24, 128), (9, 320), (16, 192)])
def test_outputs_are_kept_better_than_by_rounding(weights: str, outputs: int, inputs: int) -> None:
    weight, seen, unseen = normal(outputs, inputs), *correlated_inputs(1200, inputs).split([800, 400])
    result = dequantise(gptq(weight, input_products(seen), "w", grid_of(weights)))
    assert output_error(weight, result, unseen) < 0.5 * output_error(weight, rounded(weight, weights), unseen)


@pytest.mark.parametrize("weights", FORMATS)
def test_codes_are_those_of_the_format(weights: str) -> None:
    """What the format's own definition makes of them is what they stand for."""
    grid = grid_of(weights)
    result = gptq(normal(8, 128), input_products(correlated_inputs(400, 128)), "w", grid)
    assert result.codes.dtype == torch.int8 and result.scales.shape == (8, 128 // grid.group_size)
    assert int(result.codes.min()) >= grid.lowest and int(result.codes.max()) <= grid.highest
    assert bool((result.scales > 0).all())
    if grid.symmetric:
        expected = int4.dequantize_symmetric(result.codes, result.scales)
        assert not result.zeros.any()
    else:
        expected = int4.dequantize_asymmetric(result.codes.to(torch.uint8), result.scales, result.zeros)
    assert torch.equal(dequantise(result), expected)


def test_a_grid_that_holds_the_weights_is_found() -> None:
    """Weights of the format itself come back as they are, whatever the inputs."""
    codes = torch.randint(-7, 8, (6, 4, 64), generator=torch.Generator().manual_seed(4))
    codes[:, :, 0] = 7
    weight = (codes * (0.01 + normal(6, 4, 1).abs())).reshape(6, 256)
    result = gptq(weight, input_products(correlated_inputs(500, 256)), "w", grid_of("int4-g64"))
    assert torch.equal(result.codes.long(), codes.reshape(6, 256))
    torch.testing.assert_close(dequantise(result), weight, rtol=1e-3, atol=1e-5)


def test_uncorrelated_inputs_leave_each_weight_to_itself() -> None:
    """Every code is then the nearest one on its final scale."""
    weight = normal(6, 256)
    result = gptq(weight, torch.eye(256, dtype=torch.float64), "w", grid_of("int4-g64"))
    nearest = torch.round(weight.view(6, 4, 64) / result.scales.unsqueeze(-1)).clamp(-7, 7).reshape(6, 256)
    assert float((result.codes != nearest).float().mean()) < 0.01  # a scale that was refitted last moves a few


def test_ranges_are_clipped_only_where_it_helps() -> None:
    grid, groups = grid_of("int4-g64"), normal(50, 64)
    fitted = grid.fit(groups, torch.ones(64))
    error = (grid.values(grid.round(groups, fitted), fitted) - groups).square().sum(-1)
    widest = int4.quantize_symmetric(groups, "w", 64)
    plain = (int4.dequantize_symmetric(*widest) - groups).square().sum(-1)
    assert bool((error <= plain + 1e-6).all()) and bool((error < plain - 1e-6).any())


def test_products_of_batches_add_up() -> None:
    inputs = normal(100, 8)
    torch.testing.assert_close(input_products(inputs[:30]) + input_products(inputs[30:]),
                               input_products(inputs), rtol=1e-5, atol=1e-4)


def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long weight is quantised in pieces."""
    weight, products = normal(40, 64), input_products(correlated_inputs(300, 64))
    whole: Codes = gptq(weight, products, "w", grid_of("int4-g32"))
    monkeypatch.setattr("qspec.quant.gptq._ROWS", 16)
    pieces = gptq(weight, products, "w", grid_of("int4-g32"))
    assert float((whole.codes != pieces.codes).float().mean()) < 0.01
    torch.testing.assert_close(output_error(weight, dequantise(whole), normal(50, 64)),
                               output_error(weight, dequantise(pieces), normal(50, 64)), rtol=0.02, atol=0.0)


def test_what_cannot_be_quantised_is_named() -> None:
    grid, products = IntegerGrid(group_size=48, lowest=-7, highest=7, symmetric=True), torch.eye(64).double()
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv.*groups of 48 do not divide its 64 inputs"):
        gptq(normal(4, 64), products, "layers.0.qkv", grid)
    broken = normal(4, 64)
    broken[1, 2] = float("nan")
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv: contains NaN"):
        gptq(broken, products, "layers.0.qkv", grid_of("int4-g32"))
    with pytest.raises(InvalidInput, match=r"layers\.0\.qkv \(calibration inputs\): contains NaN"):
        gptq(normal(4, 64), products * float("inf"), "layers.0.qkv", grid_of("int4-g32"))
    with pytest.raises(InvalidInput, match="no input but zeros"):
        gptq(normal(4, 64), torch.zeros(64, 64).double(), "layers.0.qkv", grid_of("int4-g32"))


def test_formats_without_an_integer_grid_have_none() -> None:
    for name in ("int8-g64", "nvfp4", "int4-plane-g64", "int4-g32-minimum", "fp32"):
        assert int4_grid(name) is None
