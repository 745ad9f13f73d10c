from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qspec.errors import InvalidInput
from qspec.kernels import elementwise, reference
from qspec.kernels.triton.elementwise import (
    Activations,
    HeadInputs,
    Pieces,
    RowPlaces,
    empty_activations,
    rms_norm,
    rotate_and_store,
    silu_times_up,
)
from qspec.kernels.triton.fp8_linear import apply_scales
from qspec.kernels.triton.input_order import arrange
from qspec.models.config import Activation, DecoderConfig, Norm, Positions
from qspec.quant import e4m3

WIDTH = 192


def _pieces(count: int, rows: int, width: int, source: torch.Generator, device: torch.device) -> tuple[Pieces, Tensor]:
    """Pieces, and the sum that they stand for (float64)."""
    numbers, scales = torch.randn(count, rows, width, generator=source), torch.rand(width, generator=source) + 0.5
    return Pieces(numbers.to(device), scales.to(device)), numbers.double().sum(0) * scales.double()


def _assert_quantised(out: Activations, expected: Tensor) -> None:
    """The codes of ``e4m3.quantize_rows``, but for values that rounding in fp32 puts on the other side of a tie."""
    assert out.scales is not None
    codes, scales = e4m3.quantize_rows(expected.float(), "expected")
    assert torch.allclose(out.scales.cpu(), scales.squeeze(1), rtol=1e-5)
    differing = out.values.cpu().view(torch.uint8) != codes.view(torch.uint8)
    assert differing.double().mean() < 0.01
    decoded = e4m3.dequantize_rows(out.values.cpu(), out.scales.cpu()[:, None])
    assert torch.allclose(decoded, e4m3.dequantize_rows(codes, scales), rtol=0.13, atol=1e-4)  # one code apart


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("quantised", [False, True])
def test_rms_norm(count: int, quantised: bool, device: torch.device, source: torch.Generator) -> None:
    residual, weight = torch.randn(3, WIDTH, generator=source), torch.randn(WIDTH, generator=source)
    added, total = _pieces(count, 3, WIDTH, source, device)
    out = empty_activations(3, WIDTH, device, quantised=quantised)
    on_device = residual.clone().to(device)
    rms_norm(on_device, added if count else None, weight.to(device), 1e-5, out)
    after = residual.double() + total if count else residual.double()
    assert torch.allclose(on_device.cpu().double(), after, rtol=1e-5, atol=1e-5)
    expected = elementwise.rms_norm(after, weight.double(), 1e-5)
    if quantised:
        _assert_quantised(out, expected)
    else:
        assert torch.allclose(out.values.cpu().double(), arrange(expected), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("quantised", [False, True])
def test_silu_times_up(quantised: bool, device: torch.device, source: torch.Generator) -> None:
    product, total = _pieces(2, 3, 2 * WIDTH, source, device)
    out = empty_activations(3, WIDTH, device, quantised=quantised)
    silu_times_up(product, out)
    gate, up = total.chunk(2, -1)
    expected = elementwise.silu(gate) * up
    if quantised:
        _assert_quantised(out, expected)
    else:
        assert torch.allclose(out.values.cpu().double(), arrange(expected), rtol=2e-3, atol=1e-3)


def test_a_row_of_zeros_has_scale_zero(device: torch.device) -> None:
    out = empty_activations(2, WIDTH, device, quantised=True)
    rms_norm(torch.zeros(2, WIDTH, device=device), None, torch.ones(WIDTH, device=device), 1e-5, out)
    assert out.scales is not None
    assert out.scales.tolist() == [0.0, 0.0]
    assert not out.values.view(torch.uint8).any()


def test_scales_after_an_fp8_product(device: torch.device, source: torch.Generator) -> None:
    x, weight = torch.randn(3, 64, generator=source), torch.randn(48, 64, generator=source) / 8
    scales = torch.ones(48)
    scales[5] = 4.0
    high = e4m3.encode(weight * 256, "weight")
    codes, token_scales = e4m3.quantize_rows(x, "x")
    numbers = codes.float() @ high.float().t()
    activations = Activations(codes.to(device), token_scales.squeeze(1).to(device))
    out = torch.empty(3, 48, device=device)
    apply_scales(numbers.to(device), activations, scales.to(device), out)
    expected = reference.linear_fp8_plane(codes.double() * token_scales.double(), high.float(), scales[:, None], None)
    assert torch.allclose(out.cpu().double(), expected, rtol=1e-4, atol=1e-4)

    # The same, read by the operation behind it.
    residual, norm = torch.zeros(3, 64, device=device), torch.ones(64, device=device)
    padded = torch.nn.functional.pad(numbers, (0, 16)).to(device)
    product = Pieces(padded[None], torch.nn.functional.pad(scales, (0, 16)).to(device), activations.scales)
    rms_norm(residual, product, norm, 1e-5, empty_activations(3, 64, device, quantised=False))
    assert torch.allclose(residual[:, :48].cpu().double(), expected, rtol=1e-4, atol=1e-4)


def _config(head_dim: int) -> DecoderConfig:
    return DecoderConfig(
        family="llama", vocab_size=8, hidden_size=head_dim * 6, num_layers=1, num_heads=6, num_kv_heads=2,
        head_dim=head_dim, intermediate_size=8, max_position=64, norm=Norm.RMS, norm_eps=1e-5,
        activation=Activation.SILU, gated_mlp=True, positions=Positions.ROTARY, rope_theta=1e4, rope_scaling=None,
        qk_norm=False, tied_embeddings=False,
    )  # fmt: skip


@pytest.mark.parametrize("to_tail", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_rotary_and_cache(complete: bool, to_tail: bool, device: torch.device, source: torch.Generator) -> None:
    """``complete``: with biases and norms of heads."""
    head_dim, heads, kv_heads, rows = 32, 6, 2, 4
    columns = (heads + 2 * kv_heads) * head_dim
    qkv, total = _pieces(2, rows, columns, source, device)
    cos, sin = elementwise.rotary_table(_config(head_dim), 40)
    positions, slots = torch.tensor([5, 6, 33, 0]), torch.tensor([1, 1, 0, -1])
    committed = torch.tensor([32, 5])
    block_table = torch.tensor([[3, 1, 5], [0, 2, 4]])
    bias = torch.randn(columns, generator=source) if complete else None
    norms = torch.randn((heads + kv_heads) * head_dim, generator=source) if complete else None
    if bias is not None:
        total = total + bias.double()
    split = total.view(rows, -1, head_dim)
    qk, v = split[:, : heads + kv_heads], split[:, heads + kv_heads :]
    if norms is not None:
        qk = elementwise.rms_norm(qk, norms.double().view(-1, head_dim), 1e-5)
    qk = elementwise.rotate(qk, cos[positions][:, None].double(), sin[positions][:, None].double())

    cache = torch.full((2, 6 if not to_tail else 2, kv_heads, 16 if not to_tail else 3, head_dim), 7.0).half()
    expected = cache.clone()
    for row, (position, slot) in enumerate(zip(positions.tolist(), slots.tolist(), strict=True)):
        if slot >= 0:
            block = slot if to_tail else int(block_table[slot, position // 16])
            entry = position - int(committed[slot]) if to_tail else position % 16
            expected[0, block, :, entry], expected[1, block, :, entry] = qk[row, heads:].half(), v[row].half()
    keys, values = cache.to(device)
    queries = torch.full((rows, heads, head_dim), float("nan"), dtype=torch.float16, device=device)

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    inputs = HeadInputs(
        heads=heads, kv_heads=kv_heads, cos=cos.to(device), sin=sin.to(device), bias=move(bias), norms=move(norms),
        eps=1e-5)
    places = RowPlaces(
        positions.int().to(device), slots.int().to(device), block_table.int().to(device),
        committed.int().to(device) if to_tail else None)
    rotate_and_store(qkv, inputs, places, queries, keys, values)
    assert torch.allclose(queries.cpu().double(), qk[:, :heads], rtol=2e-3, atol=2e-3)
    assert torch.allclose(torch.stack([keys, values]).cpu().float(), expected.float(), rtol=2e-3, atol=2e-3)


def test_odd_widths_are_refused(device: torch.device) -> None:
    with pytest.raises(InvalidInput, match="multiples of 64"):
        rms_norm(
            torch.zeros(1, 100, device=device), None, torch.ones(100, device=device), 1e-5,
            empty_activations(1, 100, device, quantised=False))
