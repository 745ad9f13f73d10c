"""Norms and activation functions of the native kernels, against torch in float64, over places and lengths."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qspec.kernels.elementwise import rotate
from qspec.kernels.native import instruction_sets, load

SIZES = (1, 8, 15, 16, 17, 31, 33, 48, 100, 576)


def apply(instruction_set: str, name: str, x: Tensor, second: Tensor | None, third: Tensor | None = None) -> Tensor:
    out = torch.empty_like(x)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (second, third)]
    load().apply(instruction_set, name, x.data_ptr(), *addresses, 1e-5, x.shape[0], x.shape[1], out.data_ptr())
    return out


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("size", SIZES)
def test_norms(size: int) -> None:
    x, weight, bias = random(5, size), random(size), random(1, size)[0]
    squares = x.double().square().mean(-1, keepdim=True)
    rms = x.double() / (squares + 1e-5).sqrt() * weight
    layer = functional.layer_norm(x.double(), (size,), weight.double(), bias.double(), 1e-5)
    for instruction_set in instruction_sets():
        assert (apply(instruction_set, "rms_norm", x, weight) - rms).abs().max() < 1e-5
        if size > 1:
            assert (apply(instruction_set, "layer_norm", x, weight, bias) - layer).abs().max() < 1e-4


@pytest.mark.parametrize(("name", "function"), [
    ("silu_mul", functional.silu), ("gelu_mul", lambda x: functional.gelu(x, approximate="tanh")),
])
def test_activation_functions(name: str, function: Callable[[Tensor], Tensor]) -> None:
    extremes = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.0, -100.0, 1e4, -1e4])
    x = torch.cat([torch.linspace(-30, 30, 6001), extremes])[None]
    expected = function(x.double())
    for instruction_set in instruction_sets():
        result = apply(instruction_set, name, x, None)
        assert ((result - expected).abs() / (expected.abs() + 1e-6)).max() < 2e-6
        up = random(1, x.shape[1])
        assert torch.equal(apply(instruction_set, name, x, up), result * up)
        poisoned = apply(instruction_set, name, torch.tensor([[math.nan, math.inf]]), None)
        assert poisoned[0, 0].isnan() and poisoned[0, 1] == math.inf


@pytest.mark.parametrize("name", ["silu_mul", "gelu_mul"])
def test_an_element_has_the_same_bits_at_every_place(name: str) -> None:
    value = random(64)
    at_once = apply(instruction_sets()[0], name, value[None], None)[0]
    for instruction_set in instruction_sets():
        for size in (1, 5, 16, 23):
            for start in range(0, 64 - size, 7):
                part = value[start : start + size][None].contiguous()
                assert torch.equal(apply(instruction_set, name, part, None)[0], at_once[start : start + size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "silu_mul", "gelu_mul"])
def test_instruction_sets_agree(name: str, size: int) -> None:
    x, second, third = random(3, size), random(3, size), random(3, size)
    results = [apply(instruction_set, name, x, second, third) for instruction_set in instruction_sets()]
    assert all(torch.equal(result, results[0]) for result in results)


def test_rotation_has_the_bits_of_torch() -> None:
    x, cos, sin = random(4, 64), random(4, 64), random(4, 64).neg()
    expected = rotate(x[:, None], cos[:, None], sin[:, None])[:, 0]
    for instruction_set in instruction_sets():
        assert torch.equal(apply(instruction_set, "rotate", x, cos, sin), expected)
