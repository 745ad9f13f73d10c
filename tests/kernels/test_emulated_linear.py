"""Emulated linear layers of every format against their definitions, and their rows against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels import reference
from qspec.kernels.emulated_linear import EmulatedLinear
from qspec.kernels.row_tiles import CANDIDATE_ROWS, probe_row_tiles
from qspec.quant import e2m1, e4m3
from qspec.quant.activations import ACTIVATIONS
from qspec.quant.blocks_fp4 import decode_e8m0
from qspec.quant.codecs import CODECS
from qspec.quant.nibbles import sign_extend, unpack_nibbles
from qspec.quant.planes import merge_fp16, merge_int8
from qspec.quant.weight_formats import WEIGHT_FORMATS, is_held_by

OUTPUTS, INPUTS = 96, 256
LOSS_DB = {"fp32": 130, "fp32-rows": 130, "fp16-planes": 70, "e4m3-plane": 29, "e4m3-row": 30, "int8-row": 38,
           "int8-g64": 42,
           "int8-g32": 44, "int8-g128": 40, "int8-nibbles-g64": 42, "int4-plane-g64": 16, "int4-g32": 19,
           "int4-g64": 17, "int4-g128": 16, "int4-g32-asymmetric": 20, "int4-g64-asymmetric": 19,
           "int4-g128-asymmetric": 17, "int4-g32-minimum": 20, "nf4-g64": 19, "bnb-fp4-g64": 17,
           "nvfp4": 19, "mxfp4": 16}
"""Least signal to quantisation noise of normal weights."""


def weight() -> Tensor:
    """``[out, in]`` with rows of different sizes, some too large for planes; one of zeros."""
    values = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    values *= torch.logspace(-2, 1, OUTPUTS)[:, None]
    values[5] = 0
    return values


def rows_of(count: int) -> Tensor:
    """Activations of different sizes, one of them zero."""
    x = torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, count)[:, None]
    x[1] = 0
    return x


def signed(packed: Tensor) -> Tensor:
    return sign_extend(unpack_nibbles(packed))


def high_nibble_first(packed: Tensor) -> Tensor:
    """Codes in the order of bitsandbytes."""
    return torch.stack([packed >> 4, packed & 0x0F], dim=-1).flatten(-2)


DEFINITIONS: Mapping[tuple[str, str], Callable[[Tensor, Mapping[str, Tensor], Tensor], Tensor]] = {
    ("int8-row", "fp32"): lambda x, p, b: reference.linear_int8(x, p["codes"], p["scales"], b),
    ("int8-g64", "fp32"): lambda x, p, b: reference.linear_int8(x, p["codes"], p["scales"], b),
    ("int8-nibbles-g64", "fp32"): lambda x, p, b: reference.linear_int8(
        x, merge_int8(signed(p["high"]), signed(p["low"])), p["scales"], b),
    ("int4-plane-g64", "fp32"): lambda x, p, b: reference.linear_int8(x, signed(p["high"]), p["scales"] * 16, b),
    ("int8-row", "int8 per token"): lambda x, p, b: reference.linear_w8a8(x, p["codes"], p["scales"][:, 0], b),
    ("int4-g64", "fp32"): lambda x, p, b: reference.linear_int8(x, signed(p["codes"]), p["scales"], b),
    ("int4-g32-asymmetric", "fp32"): lambda x, p, b: reference.linear_int4_asymmetric(
        x, unpack_nibbles(p["codes"]), p["scales"], p["zeros"], b),
    ("int8-g32", "fp32"): lambda x, p, b: reference.linear_int8(x, p["codes"], p["scales"], b),
    ("int4-g32-minimum", "fp32"): lambda x, p, b: reference.linear_int4_minimum(
        x, unpack_nibbles(p["codes"]), p["scales"], p["minima"], b),
    ("int4-g128", "int8 per token"): lambda x, p, b: reference.linear_w4a8(x, signed(p["codes"]), p["scales"], b),
    ("e4m3-row", "e4m3 per token"): lambda x, p, b: reference.linear_fp8(x, p["codes"], p["scales"], b),
    ("e4m3-plane", "fp32"): lambda x, p, b: reference.linear_fp8_plane(x, p["high"], p["scales"], b),
    ("fp16-planes", "fp32"): lambda x, p, b: reference.linear_fp16(x, merge_fp16(p["high"], p["low"]), p["scales"], b),
    ("nf4-g64", "fp32"): lambda x, p, b: reference.linear_bitsandbytes(
        x, high_nibble_first(p["codes"]), p["scales"], reference.NF4_VALUES, b),
    ("bnb-fp4-g64", "fp32"): lambda x, p, b: reference.linear_bitsandbytes(
        x, high_nibble_first(p["codes"]), p["scales"], reference.BITSANDBYTES_FP4_VALUES, b),
    ("nf4-g64", "int8 per token"): lambda x, p, b: reference.linear_bitsandbytes(
        quantised(x, "int8 per token"), high_nibble_first(p["codes"]), p["scales"], reference.NF4_VALUES, b),
    ("nvfp4", "nvfp4"): lambda x, p, b: reference.linear_fp4(
        quantised(x, "nvfp4"), unpack_nibbles(p["codes"]), e4m3.decode(p["scales"]) * p["scale"], b),
    ("mxfp4", "mxfp4"): lambda x, p, b: reference.linear_fp4(
        quantised(x, "mxfp4"), unpack_nibbles(p["codes"]), decode_e8m0(p["scales"]), b),
}


def quantised(x: Tensor, activations: str) -> Tensor:
    function = ACTIVATIONS[activations]
    assert function is not None
    return function(x)


def layer(weights: str, activations: str, bias: Tensor | None, *, tiled: bool) -> EmulatedLinear:
    """A layer over ``weight()``."""
    codec = CODECS[weights]
    parts = codec.encode(weight(), "w")
    decoded = codec.decode(parts).t()
    tiles = probe_row_tiles(lambda rows: rows @ decoded, torch.randn(INPUTS), CANDIDATE_ROWS) if tiled else None
    return EmulatedLinear(lambda: codec.decode(parts), bias, ACTIVATIONS[activations], tiles)


def test_formats_have_codecs_and_planes_are_held() -> None:
    assert set(CODECS) == set(WEIGHT_FORMATS) == set(LOSS_DB)
    assert is_held_by("e4m3-plane", "fp16-planes")
    assert not is_held_by("fp16-planes", "e4m3-plane")
    for name, described in WEIGHT_FORMATS.items():
        if described.plane_of is not None:
            held = CODECS[name].encode(weight(), "w")
            store = CODECS[described.plane_of].encode(weight(), "w")
            assert all(torch.equal(store[part].view(torch.uint8), held[part].view(torch.uint8)) for part in held)
            assert held.keys() < store.keys()


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_parts_are_as_announced_and_keep_the_weight(name: str) -> None:
    codec = CODECS[name]
    parts = codec.encode(weight(), "w")
    announced = codec.shapes(OUTPUTS, INPUTS, "w")
    assert {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts.items()} == announced
    back = codec.decode(parts)
    assert (back.dtype, back.shape) == (torch.float32, (OUTPUTS, INPUTS))
    assert not bool(back[5].any())
    noise = (back - weight()).double().square().sum(-1)
    levels = 10 * torch.log10(weight().double().square().sum(-1) / noise.clamp(min=1e-40))
    levels[5] = 999
    assert float(levels.min()) > LOSS_DB[name]
    total_bits = sum(tensor.numel() * tensor.dtype.itemsize * 8 for tensor in parts.values()) / weight().numel()
    assert total_bits == pytest.approx(WEIGHT_FORMATS[name].bits_per_weight, abs=32 / INPUTS + 0.01)


@pytest.mark.parametrize("name", [name for name, kind in WEIGHT_FORMATS.items() if kind.group_size])
def test_a_group_size_that_does_not_divide_is_named(name: str) -> None:
    codec, message = CODECS[name], rf"mlp_out: groups of {WEIGHT_FORMATS[name].group_size} do not divide"
    with pytest.raises(InvalidInput, match=message):
        codec.shapes(4, 40, "mlp_out")
    with pytest.raises(InvalidInput, match=message):
        codec.encode(torch.ones(4, 40), "mlp_out")


@pytest.mark.parametrize(("weights", "activations"), DEFINITIONS)
def test_a_layer_is_its_definition(weights: str, activations: str) -> None:
    bias = torch.randn(OUTPUTS, generator=torch.Generator().manual_seed(2))
    x = rows_of(6)
    parts = CODECS[weights].encode(weight(), "w")
    expected = DEFINITIONS[weights, activations](x, parts, bias)
    for tiled in (False, True):
        made = layer(weights, activations, bias, tiled=tiled)(x).double()
        assert bool(((made - expected).abs().amax(-1) <= 2e-5 * expected.abs().amax(-1) + 1e-6).all())


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_a_row_has_the_same_bits_among_any_rows(activations: str) -> None:
    linear = layer("int4-g64", activations, None, tiled=True)
    x = rows_of(40)
    together = linear(x)
    for rows in range(1, 41):
        assert torch.equal(linear(x[:rows].clone()), together[:rows])
    for row in range(40):
        assert torch.equal(linear(x[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize(
    ("activations", "least"), [("int8 per token", 38), ("e4m3 per token", 29), ("nvfp4", 17), ("mxfp4", 15)]
)
def test_activations_lose_no_more_than_their_format_must(activations: str, least: float) -> None:
    x = torch.randn(50, INPUTS, generator=torch.Generator().manual_seed(3)) * torch.logspace(-4, 4, 50)[:, None]
    noise = (quantised(x, activations) - x).double().square().sum(-1)
    assert float((10 * torch.log10(x.double().square().sum(-1) / noise)).min()) > least
    values = quantised(x, activations)
    if activations in ("nvfp4", "mxfp4"):
        assert len(set(values[7, :16].abs().tolist())) <= len(e2m1.decode(torch.arange(8, dtype=torch.uint8)))
