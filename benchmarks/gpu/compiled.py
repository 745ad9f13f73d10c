"""What Triton makes of the product over planes for Hopper, without a GPU: ``python -m benchmarks.gpu.compiled``.

A row's bits depend on the kind of matrix instruction, which Triton chooses by the tile's size and warps. For each tile
of the table (or with ``--candidates`` of the tuning) and each kind of weight this prints the instructions, registers,
bytes of local memory (spills) and shared memory of the machine code, and whether the assembler makes each matrix
instruction wait for the one before. The last line is JSON. Needs no ``TRITON_INTERPRET`` in the environment.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.gpu.tuning import CANDIDATES
from qspec.kernels.triton.activation_forms import Form
from qspec.kernels.triton.elementwise import norm_kernel
from qspec.kernels.triton.group_linear import TILES as GROUP_TILES
from qspec.kernels.triton.group_linear import Codes, group_product
from qspec.kernels.triton.int8_linear import TILES as INT8_TILES
from qspec.kernels.triton.int8_linear import int8_product
from qspec.kernels.triton.plane_linear import Tile, Weights, plane_product
from qspec.kernels.triton.tuned import table_for

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ARGUMENTS = {
    "x": "*fp16", "low": "*u8", "scales": "*fp32", "out": "*fp16", "pieces": "*fp32", "arrived": "*i32",
    "M": "i32", "N": "i32", "K": "i32", "stride": "i32", "chunk": "i32",
}  # fmt: skip
SHARED_MEMORY = 227 << 10
"""What a Hopper program may have."""


def compile_product(tile: Tile, weights: Weights, *, whole: bool, split: int, finish: bool) -> dict[str, Any]:
    """Compile one variant for compute capability 9.0 and describe it."""
    types = {Weights.MERGED: "*fp16", Weights.INT8: "*i8"}
    arguments = {**_ARGUMENTS, "high": types.get(weights, "*u8")}
    constants = {
        "SPLIT": split, "FINISH": finish, "WEIGHTS": int(weights), "WHOLE": whole,
        "ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs,
        "EACH_WAITS": tile.each_waits, "OVERLAP": 1,
    }  # fmt: skip
    described = _compile(plane_product, arguments, constants, tile)
    return {"tile": str(tile), "weights": weights.name, "whole": whole, "finish": finish, **described}


def compile_groups(tile: Tile, codes: Codes, *, whole: bool) -> dict[str, Any]:
    """The same for the product over groups."""
    held = "*i8" if codes is Codes.BYTES else "*u8"
    constants = {"CODES": int(codes), "SIXTY_FOURS": 1, "WHOLE": whole, "ROWS": tile.rows, "OUTPUTS": tile.outputs,
                 "OVERLAP": 1}
    arguments = {**_ARGUMENTS, "codes": held, "low": held, "groups": "i32"}
    return {"tile": str(tile), "weights": codes.name, "whole": whole, "finish": False,
            **_compile(group_product, arguments, constants, tile)}


def compile_int8(tile: Tile) -> dict[str, Any]:
    """The same for int8 by int8."""
    arguments = {**_ARGUMENTS, "x": "*i8", "codes": "*i8", "x_stride": "i32"}
    constants = {"ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "OVERLAP": 1}
    return {"tile": str(tile), "weights": "INT8_BY_INT8", "whole": False, "finish": False,
            **_compile(int8_product, arguments, constants, tile)}


def compile_norm(form: Form) -> dict[str, Any]:
    """A norm that writes a form, to see that it compiles."""
    out = {Form.HALF: "*fp16", Form.E4M3: "*fp8e4nv", Form.INT8: "*i8", Form.INT8_AS_HALF: "*fp16"}[form]
    arguments = {**dict.fromkeys(("residual", "pieces", "scales", "token_scales", "weight", "out_scales"), "*fp32"),
                 "out": out, "M": "i32", "width": "i32", "eps": "fp32"}
    constants = {"PIECES": 2, "TOKENS": True, "FORM": int(form), "BLOCK": 4096, "OVERLAP": 1}
    return {"weights": f"norm {form.name}", **_compile(norm_kernel, arguments, constants, Tile(rows=16, warps=8))}


def _compile(kernel: Any, arguments: dict[str, str], constants: dict[str, Any], tile: Tile) -> dict[str, Any]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else arguments[name] for name in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names)
               if name not in constants and name not in ("M", "groups", "eps")}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name], capture_output=True,
                               text=True, check=True).stdout
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as source:
        source.write(compiled.asm["ptx"])
        source.flush()
        said = subprocess.run([str(_TOOLS / "ptxas"), "-v", "--gpu-name=sm_90a", source.name, "-o", "/dev/null"],
                              capture_output=True, text=True, check=True).stderr
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions = re.findall(r"(wgmma|mma)\.(?:mma_async|sync)\S*?\.(m\d+)n\d+(k\d+)", compiled.asm["ptx"])
    kinds = sorted({f"{kind} {m}{k}" for kind, m, k in instructions})
    return {"instructions": kinds, "registers": int(found[1]), "spilled_bytes": int(found[2]),
            "shared_bytes": compiled.metadata.shared, "serialised": "are serialized" in said}


def integer_variants() -> list[dict[str, Any]]:
    """Every kernel over integers with its tiles, and a norm for each form."""
    found = [compile_groups(tile, codes, whole=whole)
             for tile in GROUP_TILES.values() for codes in Codes for whole in (True, False)]
    found += [compile_int8(tile) for tile in INT8_TILES.values()]
    return found + [compile_norm(form) for form in Form]


def main() -> int:
    """Compile and print; 1 when a variant takes another instruction, too much shared memory, or one at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", action="store_true", help="all tiles that the tuning tries")
    parser.add_argument("--quick", action="store_true", help="both planes and the high one alone, not finished")
    parser.add_argument("--integers", action="store_true", help="the kernels over integers instead")
    options = parser.parse_args()
    if options.integers:
        print(json.dumps(integer_variants()))
        return 0
    if options.candidates:
        tiles = {tile for tiles in CANDIDATES.values() for tile in tiles}
    else:
        tiles = {tile for entry in table_for((9, 0)).linears
                 for cut in (entry.both, entry.high) for tile in cut.tiles.values()}
    found = []
    for tile in sorted(tiles, key=str):
        for weights in (Weights.BOTH, Weights.HIGH) if options.quick else Weights:
            for finish in (False,) if options.quick else (False, True):
                result = compile_product(
                    tile, weights, whole=weights is not Weights.BOTH, split=4 if finish else 1, finish=finish)
                found.append(result)
                print(result, flush=True)
    print(json.dumps(found))
    fine = all(each["instructions"] == ["wgmma m64k16"] and each["shared_bytes"] <= SHARED_MEMORY
               and each["serialised"] <= ("each_waits=True" in each["tile"]) for each in found)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
