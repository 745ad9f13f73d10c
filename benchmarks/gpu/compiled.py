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
    names = plane_product.arg_names
    signature = {name: arguments.get(name, "constexpr") for name in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names)
               if name in arguments and name != "M"}
    kernel = triton.compile(
        ASTSource(plane_product, signature, constants, aligned), target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name], capture_output=True,
                               text=True, check=True).stdout
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as source:
        source.write(kernel.asm["ptx"])
        source.flush()
        said = subprocess.run([str(_TOOLS / "ptxas"), "-v", "--gpu-name=sm_90a", source.name, "-o", "/dev/null"],
                              capture_output=True, text=True, check=True).stderr
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    instructions = re.findall(r"(wgmma|mma)\.(?:mma_async|sync)\S*?\.(m\d+)n\d+(k\d+)", kernel.asm["ptx"])
    kinds = sorted({f"{kind} {m}{k}" for kind, m, k in instructions})
    return {"tile": str(tile), "weights": weights.name, "whole": whole, "finish": finish, "instructions": kinds,
            "registers": int(found[1]), "spilled_bytes": int(found[2]), "shared_bytes": kernel.metadata.shared,
            "serialised": "are serialized" in said}


def main() -> int:
    """Compile and print; 1 when a variant takes another instruction, too much shared memory, or one at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", action="store_true", help="all tiles that the tuning tries")
    parser.add_argument("--quick", action="store_true", help="both planes and the high one alone, not finished")
    options = parser.parse_args()
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
