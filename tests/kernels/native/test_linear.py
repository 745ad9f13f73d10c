"""Native linear layers: right against the definition, and the same bits whatever is computed beside a row."""

from __future__ import annotations

import pytest
import torch

from qspec.errors import ContractViolation, InvalidInput
from qspec.kernels.native import instruction_sets
from qspec.kernels.native.linear import NativeLinear
from qspec.kernels.native.threads import Threads
from qspec.kernels.native.weights import READINGS, LayerWeights, native_matrix, supports
from qspec.quant.activations import ACTIVATIONS
from qspec.quant.planes import split_fp16
from tests.kernels.native.layers import decoded, expected, random_weights

KERNELS = [
    (weights, activations)
    for weights in READINGS
    for activations in ("fp32", "int8 per token", "e4m3 per token")
    if supports(weights, activations)
]
ROWS = (*range(1, 18), 40)
MANY = max(ROWS)


def shapes_of(weight_format: str) -> tuple[tuple[int, int], ...]:
    """(out, in), no multiples of a tile where the format allows it."""
    if weight_format == "fp32" or weight_format.endswith(("-row", "-plane", "-planes")):
        return (1, 1), (7, 33), (19, 100), (45, 607), (64, 576)
    size = READINGS[weight_format].group_size
    return (1, size), (13, 3 * size), (37, 10 * size)


def activations_of(inputs: int, rows: int = MANY) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(7)) * 2


@pytest.fixture(scope="module")
def one() -> Threads:
    return Threads(1)


@pytest.fixture(scope="module")
def two() -> Threads:
    return Threads(2, bind=False)


@pytest.mark.parametrize(("weight_format", "activations"), KERNELS)
def test_agrees_with_the_definition(weight_format: str, activations: str, one: Threads) -> None:
    for outputs, inputs in shapes_of(weight_format):
        weights = random_weights(weight_format, outputs, inputs, activations=activations)
        x = activations_of(inputs)
        result, definition = NativeLinear(weights, one)(x).double(), expected(weights, x)
        # Rounding grows with the sum of magnitudes. The definition divides a row by its maximum and multiplies by 127,
        # the kernel (as qspec.quant does) multiplies by 127 / maximum: a tie may round to the neighbouring code.
        size = x.abs().double() @ decoded(weights).abs().double().t() + 1
        relative = (result - definition).abs() / size
        assert relative.max() < (1e-6 if activations == "fp32" else 4e-3)


@pytest.mark.parametrize(("weight_format", "activations"), KERNELS)
def test_agrees_with_the_emulation_of_activations(weight_format: str, activations: str, one: Threads) -> None:
    quantise = ACTIVATIONS[activations]
    for outputs, inputs in shapes_of(weight_format):
        weights = random_weights(weight_format, outputs, inputs, activations=activations)
        x = activations_of(inputs)
        emulated = x if quantise is None else quantise(x)
        definition = emulated.double() @ decoded(weights).double().t() + weights.bias.double()  # type: ignore[union-attr]
        size = x.abs().double() @ decoded(weights).abs().double().t() + 1
        assert ((NativeLinear(weights, one)(x).double() - definition).abs() / size).max() < 1e-6


@pytest.mark.parametrize("weight_format", READINGS)
@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_reads_exactly_what_the_codec_decodes(weight_format: str, instruction_set: str, one: Threads) -> None:
    for outputs, inputs in shapes_of(weight_format):
        weights = random_weights(weight_format, outputs, inputs)
        assert torch.equal(NativeLinear(weights, one, instruction_set=instruction_set).decoded(), decoded(weights))


@pytest.mark.parametrize(("weight_format", "activations"), KERNELS)
def test_a_row_has_the_same_bits_everywhere(weight_format: str, activations: str, one: Threads, two: Threads) -> None:
    for outputs, inputs in shapes_of(weight_format):
        weights = random_weights(weight_format, outputs, inputs, activations=activations)
        x = activations_of(inputs)
        every_row = NativeLinear(weights, one, instruction_set="avx2" if "avx2" in instruction_sets() else None)(x)
        for instruction_set in instruction_sets():
            for threads in (one, two):
                linear = NativeLinear(weights, threads, instruction_set=instruction_set)
                for rows in ROWS:
                    for start in {0, (MANY - rows) // 2, MANY - rows}:
                        assert torch.equal(linear(x[start : start + rows]), every_row[start : start + rows])


@pytest.mark.parametrize(("weight_format", "activations"), KERNELS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row_and_shows(
    weight_format: str, activations: str, poison: float, one: Threads
) -> None:
    outputs, inputs = shapes_of(weight_format)[-1]
    weights = random_weights(weight_format, outputs, inputs, activations=activations)
    for instruction_set in instruction_sets():
        linear = NativeLinear(weights, one, instruction_set=instruction_set)
        for rows in (1, 3, 12):
            x = activations_of(inputs, rows)
            clean = linear(x)
            x[rows // 2, inputs - 1] = poison
            result = linear(x)
            others = [row for row in range(rows) if row != rows // 2]
            assert torch.equal(result[others], clean[others])
            touched = decoded(weights)[:, inputs - 1] != 0  # 0 · inf is NaN as well, but a codec may drop such a code
            assert not result[rows // 2][touched].isfinite().any()


@pytest.mark.parametrize("weight_format", ["fp16-planes", "int8-row", "int4-g64"])
def test_rows_of_zeros(weight_format: str, one: Threads) -> None:
    for activations in ("fp32", "int8 per token", "e4m3 per token"):
        if supports(weight_format, activations):
            weights = random_weights(weight_format, 5, 128, activations=activations)
            assert torch.equal(NativeLinear(weights, one)(torch.zeros(2, 128)), weights.bias.expand(2, -1))  # type: ignore[union-attr]


def test_largest_integer_sums_do_not_saturate(one: Threads) -> None:
    parts = {"codes": torch.full((3, 4096), -127, dtype=torch.int8), "scales": torch.ones(3, 1)}
    weights = LayerWeights("int8-row", parts, "int8 per token")
    for instruction_set in instruction_sets():
        result = NativeLinear(weights, one, instruction_set=instruction_set)(torch.full((1, 4096), 127.0))
        assert torch.equal(result, torch.full((1, 3), -127.0 * 127 * 4096))


def test_every_16_bit_word_is_read_from_its_planes(one: Threads) -> None:
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    rows = words[words.float().abs() <= 1.75].view(-1, 1).expand(-1, 4).contiguous()
    high, low = split_fp16(rows, "weight")
    weights = LayerWeights("fp16-planes", {"high": high, "low": low, "scales": torch.ones(len(rows), 1)})
    for instruction_set in instruction_sets():
        assert torch.equal(NativeLinear(weights, one, instruction_set=instruction_set).decoded(), rows.float())


def test_wrong_parts_are_refused() -> None:
    good = random_weights("fp16-planes", 8, 64)
    with pytest.raises(ContractViolation, match="lacks the part 'low'"):
        native_matrix(LayerWeights("fp16-planes", {k: v for k, v in good.parts.items() if k != "low"}), "w")
    with pytest.raises(ContractViolation, match=r"w\.low is .* not"):
        native_matrix(LayerWeights("fp16-planes", {**good.parts, "low": good.parts["low"][:, :32]}), "w")
    with pytest.raises(ContractViolation, match="not contiguous"):
        native_matrix(LayerWeights("fp16-planes", {**good.parts, "low": good.parts["low"].t().contiguous().t()}), "w")
    with pytest.raises(ContractViolation, match=r"w\.bias"):
        native_matrix(LayerWeights("fp16-planes", good.parts, bias=torch.zeros(3)), "w")
    with pytest.raises(InvalidInput, match="w: has no native kernel for mxfp4 weights"):
        native_matrix(random_weights("mxfp4", 8, 64), "w")
    with pytest.raises(InvalidInput, match="more than int8 sums hold"):
        native_matrix(random_weights("int8-row", 1, 140_000, activations="int8 per token"), "w")
