"""GPTQ against what it must be where that is known, and against rounding where it must be better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant.gptq import best_scales, gptq_symmetric, input_hessian
from qspec.quant.int4 import dequantize_symmetric, quantize_symmetric

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(tokens: int, width: int) -> Tensor:
    """Inputs that live near a space of a quarter of their width, as hidden states do."""
    return normal(tokens, width // 4, seed=1) @ normal(width // 4, width, seed=2) + 0.1 * normal(tokens, width, seed=3)


def output_error(weight: Tensor, codes: Tensor, scales: Tensor, inputs: Tensor) -> float:
    """Squared error of the layer's outputs, relative."""
    exact = inputs @ weight.t()
    return float((inputs @ dequantize_symmetric(codes, scales).t() - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(24, 128, 32), (9, 320, 64), (16, 192, 64)])
def test_outputs_are_kept_better_than_by_rounding(outputs: int, inputs: int, group: int) -> None:
    weight, seen, unseen = normal(outputs, inputs), *correlated_inputs(1200, inputs).split([800, 400])
    codes, scales = gptq_symmetric(weight, input_hessian(seen), "w", group)
    rounded = quantize_symmetric(weight, "w", group)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) <= 7
    assert scales.shape == (outputs, inputs // group)
    assert output_error(weight, codes, scales, unseen) < 0.5 * output_error(weight, *rounded, unseen)


def test_uncorrelated_inputs_leave_nothing_to_undo() -> None:
    weight = normal(6, 256)
    codes, scales = gptq_symmetric(weight, torch.eye(256, dtype=torch.float64), "w", 64)
    chosen = best_scales(weight.double().reshape(-1, 64)).reshape(6, 4)
    torch.testing.assert_close(scales, chosen.float())
    nearest = torch.round(weight.double().reshape(6, 4, 64) / chosen.unsqueeze(-1)).clamp(-7, 7).reshape(6, 256)
    assert torch.equal(codes, nearest.to(torch.int8))


def test_best_scales_are_no_worse_than_the_widest() -> None:
    groups = normal(50, 64).double()
    widest = groups.abs().amax(-1) / 7

    def error(scales: Tensor) -> Tensor:
        rounded = torch.round(groups / scales.unsqueeze(-1)).clamp(-7, 7) * scales.unsqueeze(-1)
        return (rounded - groups).square().sum(-1)

    assert bool((error(best_scales(groups)) <= error(widest)).all())
    assert bool((error(best_scales(groups)) < error(widest)).any())


def test_an_input_that_is_always_zero_has_code_zero() -> None:
    inputs = correlated_inputs(300, 64)
    inputs[:, 5] = 0.0
    codes, _ = gptq_symmetric(normal(4, 64), input_hessian(inputs), "w", 32)
    assert codes[:, 5].tolist() == [0, 0, 0, 0]
    assert int(codes.abs().sum()) > 0


def test_hessians_of_batches_add_up() -> None:
    inputs = normal(100, 8)
    torch.testing.assert_close(input_hessian(inputs[:30]) + input_hessian(inputs[30:]), input_hessian(inputs))


def test_what_cannot_be_quantised_is_named() -> None:
    hessian = torch.eye(64, dtype=torch.float64)
    with pytest.raises(InvalidInput, match="48 does not divide the 64 inputs of layers.0.qkv"):
        gptq_symmetric(normal(4, 64), hessian, "layers.0.qkv", 48)
    broken = normal(4, 64)
    broken[1, 2] = float("nan")
    with pytest.raises(InvalidInput, match="layers.0.qkv"):
        gptq_symmetric(broken, hessian, "layers.0.qkv", 32)
    with pytest.raises(InvalidInput, match="calibration"):
        gptq_symmetric(normal(4, 64), hessian * float("inf"), "layers.0.qkv", 32)
