"""Norms, activations and rotary embedding: what they are in float64, and that an element's bits are its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qspec.kernels.elementwise import (
    gelu_tanh,
    layer_norm,
    mlp_middle,
    rms_norm,
    rotary_frequencies,
    rotary_table,
    rotate,
    silu,
)
from qspec.models.config import Activation, DecoderConfig, Norm, Positions, RopeScaling

LENGTHS = [*range(1, 71), 33_000]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu_tanh": gelu_tanh}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def defined(name: str, x: Tensor) -> Tensor:
    """The activation in float64."""
    x = x.double()
    if name == "silu":
        return x * torch.sigmoid(x)
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_what_its_name_says(name: str) -> None:
    x = torch.cat([3 * numbers(4000), torch.tensor([0.0, -0.0, 90.0, -90.0, 1e4, -1e4, 1e-30])])
    torch.testing.assert_close(ACTIVATIONS[name](x).double(), defined(name, x), rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activated_element_has_the_same_bits_wherever_it_lies(name: str, threads: int) -> None:
    function = ACTIVATIONS[name]
    for value in (0.37, -1.93, 5.01, -11.3):
        results = torch.cat([function(torch.full((length,), value)) for length in LENGTHS])
        assert bool((results == results[0]).all())
    x = 3 * numbers(150)
    whole = function(x)
    for length in range(1, 71):
        for start in (0, 1, 7, 16, 79):
            assert torch.equal(function(x[start : start + length]), whole[start : start + length])


@pytest.mark.parametrize("activation", Activation)
def test_gated_activation_of_a_row_does_not_depend_on_the_rows(activation: Activation, threads: int) -> None:
    x = 2 * numbers(33, 2 * 53)
    middle = mlp_middle(activation, gated=True, row_invariant=True)
    together = middle(x)
    gate, up = x.chunk(2, dim=-1)
    expected = defined(activation.value, gate) * up.double()
    torch.testing.assert_close(together.double(), expected, rtol=1e-5, atol=1e-6)
    for row in range(33):
        assert torch.equal(middle(x[row : row + 1]), together[row : row + 1])
    plain = mlp_middle(activation, gated=False, row_invariant=True)
    assert torch.equal(plain(gate), ACTIVATIONS[activation.value](gate.contiguous()))


@pytest.mark.parametrize("width", [1, 7, 32, 53, 576, 4099])
def test_norms(width: int, threads: int) -> None:
    x, weight, bias = 2 * numbers(70, width), numbers(width, seed=1), numbers(width, seed=2)
    exact = x.double()
    rms = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), rms, rtol=3e-6, atol=1e-6)
    centred = exact - exact.mean(-1, keepdim=True)
    layer = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double()
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5).double(), layer, rtol=1e-5, atol=1e-5)
    together = rms_norm(x, weight, 1e-5), layer_norm(x, weight, bias, 1e-5)
    for first, last in [(0, rows) for rows in range(1, 70)] + [(row, row + 1) for row in range(70)]:
        assert torch.equal(rms_norm(x[first:last], weight, 1e-5), together[0][first:last])
        assert torch.equal(layer_norm(x[first:last], weight, bias, 1e-5), together[1][first:last])


@pytest.mark.parametrize("head_dim", [8, 16, 64, 80])
def test_norm_of_heads_inside_a_wider_row(head_dim: int, threads: int) -> None:
    qkv, weight = numbers(40, 7, head_dim), numbers(5, head_dim, seed=1)
    together = rms_norm(qkv[:, :5], weight, 1e-6)
    torch.testing.assert_close(together, rms_norm(qkv[:, :5].clone(), weight, 1e-6), rtol=1e-6, atol=1e-6)
    for rows in range(1, 41):
        assert torch.equal(rms_norm(qkv[:rows].clone()[:, :5], weight, 1e-6), together[:rows])
        assert torch.equal(rms_norm(qkv[rows - 1 : rows].clone()[:, :5], weight, 1e-6), together[rows - 1 : rows])


def config(head_dim: int, scaling: RopeScaling | None = None) -> DecoderConfig:
    """A decoder of which only the rotary fields matter here."""
    return DecoderConfig(
        family="llama", vocab_size=320, hidden_size=4 * head_dim, num_layers=1, num_heads=4, num_kv_heads=2,
        head_dim=head_dim, intermediate_size=8, max_position=256, norm=Norm.RMS, norm_eps=1e-5,
        activation=Activation.SILU, gated_mlp=True, positions=Positions.ROTARY, rope_theta=10000.0,
        rope_scaling=scaling, qk_norm=False, tied_embeddings=True,
    )


@pytest.mark.parametrize("head_dim", [2, 16, 64])
def test_rotation_is_a_complex_product(head_dim: int) -> None:
    x, positions = numbers(200, 3, head_dim), torch.arange(200)
    cos, sin = rotary_table(config(head_dim), 200)
    rotated = rotate(x, cos[:, None], sin[:, None])
    half = head_dim // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())  # half-split layout
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(half).double() * 2 / head_dim)
    turned = pairs * torch.exp(1j * angles)[:, None]
    torch.testing.assert_close(rotated.double(), torch.cat([turned.real, turned.imag], -1), rtol=0, atol=2e-4)
    assert torch.equal(rotated[0], x[0])


@pytest.mark.parametrize(("factor", "low", "high", "original"), [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 32)])
def test_llama3_scaling_is_that_of_transformers(factor: float, low: float, high: float, original: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original,
        },
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    scaling = RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original)
    frequencies = rotary_frequencies(config(64, scaling))
    assert attention_factor == 1.0
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0)
    plain = rotary_frequencies(config(64))
    kept, divided = frequencies == plain, frequencies == plain / factor
    assert bool(kept.any()) and bool(divided.any()), "the frequencies of this case are on both sides"
