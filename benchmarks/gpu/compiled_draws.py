"""Kernels that draw tokens, compiled for Hopper, which needs no GPU: registers, and what spills.

``python -m benchmarks.gpu.compiled_draws``: the interpreter accepts programs that the compiler does not, so this runs
wherever Triton's compiler is. The last line is JSON.
"""

from __future__ import annotations

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

from qspec.kernels.triton import draws, filters
from qspec.kernels.triton.row_draws import Field

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_POINTERS = {
    "pieces": "*fp32", "scales": "*fp32", "token_scales": "*fp32", "draws": "*i32", "positions": "*i32",
    "winners": "*fp64", "tokens": "*i32", "scaled": "*fp32", "maxima": "*fp32", "bounds": "*fp32", "ties": "*i32",
    "distributions": "*fp32", "step": "*i32", "chosen": "*i32", "stands": "*i32", "block_maxima": "*fp32",
    "M": "i32", "stride": "i32", "width": "i32", "blocks": "i32", "rows": "i32",
}  # fmt: skip
_CONSTANTS = {
    **{field.name: int(field) for field in Field}, "PIECES": 2, "TOKENS": False, "BLOCK": 2048, "BLOCKS": 32,
    "OVERLAP": 1, "NOISE": True, "DRAFTING": False, "SECONDS": True, "DECIDES": True,
}  # fmt: skip


def compile_kernel(kernel: Any, warps: int, **changes: Any) -> dict[str, Any]:
    """Compile ``kernel`` for compute capability 9.0."""
    names = kernel.arg_names
    signature = {name: _POINTERS.get(name, "constexpr") for name in names}
    constants = {name: {**_CONSTANTS, **changes}[name] for name in names if name not in _POINTERS}
    made = triton.compile(
        ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(_CUOBJDUMP), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return {"kernel": kernel.__name__, "changes": changes, "registers": int(found[1]), "spilled_bytes": int(found[2])}


def main() -> int:
    """Compile and print."""
    found = [
        compile_kernel(draws._draw_blocks, 4),
        compile_kernel(draws._draw_blocks, 4, NOISE=False),
        compile_kernel(draws._scale_blocks, 4),
        compile_kernel(filters._bounds_kernel, 16, BLOCK=8192),
        compile_kernel(draws._draw_kept_blocks, 4),
        compile_kernel(draws._draw_kept_blocks, 4, DRAFTING=True),
        compile_kernel(draws._verdicts_kernel, 1),
        compile_kernel(draws._verdicts_kernel, 1, SECONDS=False),
    ]
    for each in found:
        print(each)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
