"""e4m3 and e2m1: every code, and rounding against a search over all codes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.quant import e2m1, e4m3
from qspec.quant.nibbles import pack_nibbles, sign_extend, unpack_nibbles

E4M3_CODES = torch.arange(256, dtype=torch.int16).to(torch.uint8)
E4M3_FINITE = E4M3_CODES[(E4M3_CODES & 0x7F) != 0x7F]


def e4m3_by_definition(code: int) -> float:
    """The value of one code: exponent bias 7, subnormals at exponent 0."""
    sign, exponent, mantissa = (-1.0 if code & 0x80 else 1.0), code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def nearest_even(values: Tensor, magnitudes: Tensor) -> Tensor:
    """Brute force in float64: index of the nearest magnitude, of two equally near ones the even index."""
    distances = (values.double().abs().clamp(max=float(magnitudes[-1]))[:, None] - magnitudes.double()[None, :]).abs()
    nearest = distances == distances.amin(-1, keepdim=True)
    indices = torch.arange(len(magnitudes)).expand_as(nearest)
    even = nearest & (indices % 2 == 0)
    return torch.where(even.any(-1), even.int().argmax(-1), nearest.int().argmax(-1))


def awkward_values(magnitudes: Tensor) -> Tensor:
    """All magnitudes, the midpoints, the fp32 numbers beside both, a fine grid, and beyond the largest; both signs."""
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    marks = torch.cat([magnitudes, middles])
    infinity = torch.full_like(marks, float("inf"))
    grid = torch.linspace(0, float(magnitudes[-1]) * 1.2, 4001)
    tiny = torch.tensor([1e-45, 1e-38, 1e-20])
    beyond = magnitudes[-1] * torch.tensor([1.01, 1.03, 1.04, 2.0, 1e6, 1e30])
    values = torch.cat(
        [marks, torch.nextafter(marks, infinity), torch.nextafter(marks, -infinity), grid, tiny, beyond]
    )
    return torch.cat([values, -values])


def test_every_e4m3_code_has_its_value() -> None:
    expected = torch.tensor([e4m3_by_definition(code) for code in range(256)])
    decoded = e4m3.decode(E4M3_CODES.view(torch.float8_e4m3fn))
    assert torch.equal(decoded.isnan(), expected.isnan())
    finite = ~expected.isnan()
    assert torch.equal(decoded[finite].view(torch.int32), expected[finite].view(torch.int32)), "signs of zero too"
    assert float(decoded[finite].max()) == e4m3.LARGEST


def test_every_finite_e4m3_code_comes_back() -> None:
    values = e4m3.decode(E4M3_FINITE.view(torch.float8_e4m3fn))
    assert torch.equal(e4m3.encode(values, "w").view(torch.uint8), E4M3_FINITE)
    assert torch.equal(e4m3.encode(values.half(), "w").view(torch.uint8), E4M3_FINITE)


def test_e4m3_rounds_to_nearest_even_and_saturates() -> None:
    magnitudes = torch.tensor([e4m3_by_definition(code) for code in range(127)])
    values = awkward_values(magnitudes)
    expected = nearest_even(values, magnitudes) | (torch.signbit(values).long() << 7)
    assert torch.equal(e4m3.encode(values, "w").view(torch.uint8).long(), expected)


def test_every_e2m1_code_has_its_value_and_comes_back() -> None:
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    codes = torch.arange(16, dtype=torch.uint8)
    expected = torch.tensor([*magnitudes, *(-m for m in magnitudes)])
    decoded = e2m1.decode(codes)
    assert torch.equal(decoded.view(torch.int32), expected.view(torch.int32)), "signs of zero too"
    assert torch.equal(e2m1.encode(decoded, "w"), codes)


def test_e2m1_rounds_to_nearest_even_and_saturates() -> None:
    magnitudes = e2m1.decode(torch.arange(8, dtype=torch.uint8))
    values = awkward_values(magnitudes)
    expected = nearest_even(values, magnitudes) | (torch.signbit(values).long() << 3)
    assert torch.equal(e2m1.encode(values, "w").long(), expected)


@pytest.mark.parametrize("encode", [e4m3.encode, e4m3.quantize_rows, e2m1.encode])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_by_name(encode: Callable[[Tensor, str], object], bad: float) -> None:
    values = torch.ones(2, 3)
    values[1, 2] = bad
    with pytest.raises(InvalidInput, match=r"layers\.3\.qkv"):
        encode(values, "layers.3.qkv")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=32))
def test_e4m3_rows_come_back_within_half_a_step(row: list[float]) -> None:
    values = torch.tensor([row, [0.0] * len(row)])
    codes, scales = e4m3.quantize_rows(values, "w")
    back = e4m3.dequantize_rows(codes, scales)
    # Half a step of the mantissa, or of the subnormals, and the rounding of the scale itself.
    bound = values.abs() * (2.0**-4 + 1e-6) + scales * 2.0**-10 * 1.001 + 1e-43
    assert bool(((back - values).abs() <= bound).all())
    assert torch.equal(back[1], torch.zeros(len(row)))


def test_nibbles() -> None:
    pairs = torch.tensor(list(itertools.product(range(16), range(16))), dtype=torch.uint8)
    packed = pack_nibbles(pairs)
    assert packed.shape == (256, 1)
    assert len(set(packed.flatten().tolist())) == 256
    assert int(pack_nibbles(torch.tensor([[1, 2]], dtype=torch.uint8))) == 0x21
    assert torch.equal(unpack_nibbles(packed), pairs)
    assert sign_extend(torch.arange(16, dtype=torch.uint8)).tolist() == [*range(8), *range(-8, 0)]
