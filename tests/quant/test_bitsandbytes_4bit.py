"""NF4 and FP4: all codes against the tables, nearest entries, rows apart, bytes that bitsandbytes reads, absence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from bitsandbytes import functional, matmul_4bit

from qspec.errors import InvalidInput
from qspec.kernels.reference import BITSANDBYTES_FP4_VALUES, NF4_VALUES
from qspec.quant.bitsandbytes_4bit import BLOCK, dequantize, quantize, runs
from qspec.quant.codecs import CODECS
from qspec.quant.weight_formats import WEIGHT_FORMATS

VALUES = {"nf4": NF4_VALUES, "fp4": BITSANDBYTES_FP4_VALUES}
KINDS = pytest.mark.parametrize("kind", VALUES)


def table(kind: str) -> torch.Tensor:
    return torch.tensor(VALUES[kind], dtype=torch.float64)


def random_weight(rows: int, inputs: int) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))


@KINDS
def test_every_byte_is_two_entries_of_the_table(kind: str) -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(8, 32)
    values = dequantize(packed, torch.ones(8, 1), kind)
    entries = table(kind).float()
    assert torch.equal(values[:, 0::2], entries[(packed >> 4).long()])
    assert torch.equal(values[:, 1::2], entries[(packed & 0x0F).long()])
    assert torch.equal(entries, functional.get_4bit_type(kind, device="cpu"))


@KINDS
def test_every_entry_comes_back(kind: str) -> None:
    row = table(kind).float().repeat(BLOCK // 16)[None] * torch.tensor([[0.5], [1.0], [2.0], [1024.0]])
    packed, scales = quantize(row, "w", kind)
    assert torch.equal(scales, torch.tensor([[0.5], [1.0], [2.0], [1024.0]]))
    assert torch.equal(dequantize(packed, scales, kind), row)


@KINDS
def test_a_value_becomes_the_nearest_entry(kind: str) -> None:
    values = torch.linspace(-1, 1, 63 * 500).view(500, 63)
    values = torch.cat([torch.ones(500, 1), values], dim=1)
    back = dequantize(*quantize(values, "w", kind), kind)
    nearest = (values.double()[..., None] - table(kind)).abs().amin(-1)
    assert bool(((back.double() - values.double()).abs() <= nearest + 1e-7).all())


@KINDS
def test_rows_and_blocks_do_not_see_each_other(kind: str) -> None:
    weight = random_weight(6, 4 * BLOCK)
    packed, scales = quantize(weight, "w", kind)
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (6, 2 * BLOCK))
    assert (scales.dtype, tuple(scales.shape)) == (torch.float32, (6, 4))
    assert torch.equal(scales, weight.view(6, 4, BLOCK).abs().amax(-1))
    for row in range(6):
        alone = quantize(weight[row : row + 1], "w", kind)
        assert torch.equal(alone[0][0], packed[row]) and torch.equal(alone[1][0], scales[row])
    weight[0, :BLOCK] *= 100
    changed, _ = quantize(weight, "w", kind)
    assert torch.equal(changed[:, BLOCK // 2 :], packed[:, BLOCK // 2 :])


@KINDS
def test_a_transposed_weight_of_any_precision_has_the_same_codes(kind: str) -> None:
    weight = random_weight(8, 2 * BLOCK).bfloat16()
    expected = quantize(weight.float(), "w", kind)
    for given in (weight, weight.t().contiguous().t()):
        packed, scales = quantize(given, "w", kind)
        assert torch.equal(packed, expected[0]) and torch.equal(scales, expected[1])


@KINDS
def test_the_librarys_own_product_reads_the_bytes(kind: str) -> None:
    name = {"nf4": "nf4-g64", "fp4": "bnb-fp4-g64"}[kind]
    weight, x = random_weight(24, 2 * BLOCK), random_weight(3, 2 * BLOCK)
    parts = CODECS[name].encode(weight, "w")
    state = functional.QuantState(
        absmax=parts["scales"].flatten(), shape=weight.shape, dtype=torch.float32, blocksize=BLOCK, quant_type=kind,
        code=functional.get_4bit_type(kind, device="cpu"),
    )
    product = matmul_4bit(x, parts["codes"].view(-1, 1).t(), state)
    torch.testing.assert_close(product, x @ CODECS[name].decode(parts).t(), rtol=1e-5, atol=1e-5)


@KINDS
def test_zeros_stay_zero_and_what_no_format_holds_is_refused(kind: str) -> None:
    weight = torch.zeros(2, BLOCK)
    assert not bool(dequantize(*quantize(weight, "w", kind), kind).any())
    for bad in (float("nan"), float("inf")):
        weight[1, 3] = bad
        with pytest.raises(InvalidInput, match="layers.0.qkv: contains NaN or infinity"):
            quantize(weight, "layers.0.qkv", kind)
    with pytest.raises(InvalidInput, match="layers.0.qkv: groups of 64 do not divide its 96 inputs"):
        quantize(torch.ones(2, 96), "layers.0.qkv", kind)


def test_they_are_there_exactly_where_the_package_runs() -> None:
    assert runs()
    needed = {name: kind.package for name, kind in WEIGHT_FORMATS.items() if kind.package}
    assert needed == {"nf4-g64": "bitsandbytes", "bnb-fp4-g64": "bitsandbytes"}


ABSENT = """
import sys
sys.modules["bitsandbytes"] = None
from qspec.errors import InvalidInput
from qspec.quant.methods import METHODS, Backend, check_verify_method, choose_verify
from qspec.quant.overrides import Role, parse_overrides
assert "torch" not in sys.modules
for call in (
    lambda: check_verify_method("int4:nf4", Backend.CPU),
    lambda: parse_overrides("lm_head=int4:nf4", Role.VERIFY),
):
    try:
        call()
    except InvalidInput as error:
        print(error)
assert choose_verify("int4", Backend.CPU).variant.name == "g64"
from qspec.__main__ import main
main(["methods"])
import torch
from qspec.quant.bitsandbytes_4bit import quantize
try:
    quantize(torch.ones(1, 64), "w", "nf4")
except InvalidInput as error:
    print(error)
"""


def test_without_the_package_the_variants_are_absent_and_errors_list_the_others() -> None:
    done = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second, *table_lines, last = done.stdout.splitlines()
    rest = "int4:nf4 needs the package bitsandbytes, which is not installed; choose one of: int4:g64, int4:g32, "
    assert first.startswith(f"verify_quantization: {rest}") and "int4:fp4" not in first
    assert second.startswith(f"verify_overrides: {rest}")
    for name in ("int4:nf4", "int4:fp4", "w4a8:nf4", "w4a8:fp4"):
        (line,) = [line for line in table_lines if line.startswith(f"{name} ")]
        assert line.split().count("absent") == 2
    assert "absent" not in next(line for line in table_lines if line.startswith("int4:g64 "))
    assert last.startswith("nf4, fp4: bitsandbytes does not run on this machine (")
    assert "choose another format: int4:g64, " in last
