"""Products over integer weights: those of rows, of groups in nibbles and bytes, and of int8 by int8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qspec.errors import InvalidInput
from qspec.kernels import reference
from qspec.kernels.triton.activation_forms import Form
from qspec.kernels.triton.elementwise import Activations, Pieces, rms_norm, silu_times_up
from qspec.kernels.triton.group_linear import GroupWeight, group_pieces, tile_for
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.int8_linear import int8_pieces
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, product_pieces
from qspec.quant import int8
from qspec.quant.codecs import CODECS
from tests.kernels.triton.weights import assert_same_row

OUTPUTS, INPUTS = 80, 384
GROUPED = ("int4-g64", "int4-g128", "int8-g64", "int8-g128", "int8-nibbles-g64", "int4-plane-g64")


def _error(out: Tensor, expected: Tensor) -> float:
    return float((out.double().cpu() - expected).norm() / expected.norm())


def _grouped(weights: str, source: torch.Generator, device: torch.device, apart: int = 0) -> tuple[GroupWeight, Tensor]:
    """A weight, ``apart`` bytes between its rows, and what it stands for (float64)."""
    parts = CODECS[weights].encode(torch.randn(OUTPUTS, INPUTS, generator=source), "weight")

    def placed(codes: Tensor) -> Tensor:
        wide = torch.full((OUTPUTS, codes.shape[1] + apart), 0x77, dtype=codes.dtype)
        wide[:, : codes.shape[1]] = codes
        return wide.to(device)[:, : codes.shape[1]]

    codes, low = parts.get("codes", parts.get("high")), parts.get("low")
    assert codes is not None
    size = INPUTS // parts["scales"].shape[1]
    exact = CODECS[weights].decode(parts).double() / (16 if weights == "int4-plane-g64" else 1)
    return GroupWeight(placed(codes), None if low is None else placed(low), parts["scales"].to(device), size), exact


@pytest.mark.parametrize("weights", GROUPED)
@pytest.mark.parametrize(("rows", "split", "apart"), [(1, 1, 0), (5, 2, 64), (17, 3, 0)])
def test_groups(
    weights: str, rows: int, split: int, apart: int, device: torch.device, source: torch.Generator
) -> None:
    weight, exact = _grouped(weights, source, device, apart)
    x = torch.randn(rows, INPUTS, generator=source).half()
    pieces = torch.full((split, rows, OUTPUTS), float("nan"), device=device)
    group_pieces(arrange(x).to(device), weight, split, tile_for(rows), pieces)
    assert _error(pieces.sum(0), x.double() @ exact.t()) < 1e-5


def test_every_code_is_exact(device: torch.device) -> None:
    """All pairs of nibbles in both planes, all bytes: multiplied with 1 at one input at a time."""
    codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8)
    nibbles = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    eye = arrange(torch.eye(64).half()).to(device)
    scales = torch.ones(16, 1, device=device)
    for held in (codes, nibbles):
        width = 64 if held is codes else 32
        for part in held.split(width):
            block = part.repeat(16, 1).to(device)
            pieces = torch.empty(1, 64, 16, device=device)
            group_pieces(eye, GroupWeight(block, None, scales, 64), 1, tile_for(64), pieces)
            signed = part.float() if held is codes else CODECS["int4-g64"].decode(
                {"codes": part[None], "scales": torch.ones(1, 1)})[0]
            assert torch.equal(pieces[0, :, 0].cpu(), signed)
    both = torch.arange(-119, 120, dtype=torch.int16).to(torch.int8)
    both = torch.cat([both, both[:17]]).view(4, 64)
    from qspec.quant.nibbles import pack_signed
    from qspec.quant.planes import split_int8

    high, low = (pack_signed(plane).repeat(4, 1).to(device) for plane in split_int8(both, "codes"))
    pieces = torch.empty(1, 64, 16, device=device)
    group_pieces(eye, GroupWeight(high, low, scales, 64), 1, tile_for(64), pieces)
    assert torch.equal(pieces[0, :, :4].t().cpu(), both.float())


@pytest.mark.parametrize("weights", ["int4-g64", "int8-nibbles-g64"])
def test_a_row_does_not_see_its_neighbours(weights: str, device: torch.device, source: torch.Generator) -> None:
    weight, _ = _grouped(weights, source, device)
    x = torch.full((35, INPUTS), float("nan")).half()
    x[[0, 17, 34]] = torch.randn(INPUTS, generator=source).half()
    alone = torch.empty(2, 1, OUTPUTS, device=device)
    group_pieces(arrange(x[:1]).to(device), weight, 2, tile_for(1), alone)
    pieces = torch.empty(2, 35, OUTPUTS, device=device)
    group_pieces(arrange(x).to(device), weight, 2, tile_for(35), pieces)
    for row in (0, 17, 34):
        assert_same_row(pieces[:, row], alone[:, 0])


def test_int8_rows_with_16_bit_activations(device: torch.device, source: torch.Generator) -> None:
    codes, scales = int8.quantize(torch.randn(OUTPUTS, INPUTS, generator=source), "weight")
    x = torch.randn(5, INPUTS, generator=source).half()
    expected = reference.linear_int8(x, codes, scales, None)
    weight = PlaneWeight(codes.to(device), None, scales.view(-1).to(device))
    for tile in (Tile(rows=16), Tile(rows=32, outputs=128, warps=8, each_waits=True)):
        pieces = torch.full((2, 5, OUTPUTS), float("nan"), device=device)
        product_pieces(arrange(x).to(device), weight, 2, tile, pieces)
        assert _error(pieces.sum(0) * weight.scales, expected) < 1e-5


@pytest.mark.parametrize(("rows", "split"), [(1, 1), (20, 2)])
def test_int8_by_int8_is_exact(rows: int, split: int, device: torch.device, source: torch.Generator) -> None:
    codes = torch.randint(-127, 128, (OUTPUTS, INPUTS), generator=source).to(torch.int8)
    x = torch.randint(-127, 128, (rows, INPUTS), generator=source).to(torch.int8)
    wide = torch.full((OUTPUTS, INPUTS + 128), 99, dtype=torch.int8)
    wide[:, :INPUTS] = codes
    pieces = torch.full((split, rows, OUTPUTS), float("nan"), device=device)
    int8_pieces(x.to(device), wide.to(device)[:, :INPUTS], split, Tile(rows=32), pieces)
    assert torch.equal(pieces.sum(0).cpu().double(), x.double() @ codes.double().t())


@pytest.mark.parametrize("form", [Form.INT8, Form.INT8_AS_HALF])
def test_activations_are_whole_numbers_of_a_tokens_scale(
    form: Form, device: torch.device, source: torch.Generator
) -> None:
    dtype = torch.int8 if form is Form.INT8 else torch.float16
    residual, weight = torch.randn(3, INPUTS, generator=source), torch.randn(INPUTS, generator=source)
    residual[1] = 0  # a scale of zero
    out = Activations(torch.empty(3, INPUTS, dtype=dtype, device=device), torch.empty(3, device=device))
    assert out.form is form and out.scales is not None
    rms_norm(residual.to(device), None, weight.to(device), 1e-5, out)
    expected = residual.double() * (residual.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    _assert_quantised(out, expected, form)
    numbers = torch.randn(1, 3, 2 * INPUTS, generator=source)
    silu_times_up(Pieces(numbers.to(device), torch.ones(2 * INPUTS, device=device)), out)
    gate, up = numbers[0].double().chunk(2, -1)
    _assert_quantised(out, torch.nn.functional.silu(gate) * up, form)


def _assert_quantised(out: Activations, expected: Tensor, form: Form) -> None:
    codes, scales = reference.quantize_rows_int8(expected.float())
    assert out.scales is not None
    assert torch.allclose(out.scales.cpu(), scales.squeeze(1), rtol=1e-5)
    wanted = codes.double() if form is Form.INT8 else arrange(codes).double()
    difference = (out.values.cpu().double() - wanted).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.01  # but for ties


def test_what_no_kernel_takes_is_refused(device: torch.device, source: torch.Generator) -> None:
    weight, _ = _grouped("int4-g64", source, device)
    with pytest.raises(InvalidInput, match="groups must be multiples of 64"):
        GroupWeight(weight.codes, None, weight.scales, 32)
    with pytest.raises(InvalidInput, match="scales of shape"):
        GroupWeight(weight.codes, None, weight.scales[:, :1].contiguous(), 64)
    x, pieces = torch.zeros(1, INPUTS, device=device).half(), torch.empty(8, 1, OUTPUTS, device=device)
    with pytest.raises(InvalidInput, match="one would be empty"):
        group_pieces(x, weight, 8, tile_for(1), pieces)
    with pytest.raises(InvalidInput, match="reads 128 inputs at a time"):
        group_pieces(x, weight, 1, Tile(rows=16), pieces)
