"""Compiles the tiles that need most shared memory for some kinds of GPUs; needs none. The last line is JSON.

``python -m tests.kernels.triton.compiled_tiles 80 89``: a process of its own, as tests may have chosen the interpreter.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qspec.kernels.triton.attention import TILE, _attend, stages_of
from qspec.kernels.triton.device_limits import DeviceLimits
from qspec.kernels.triton.group_linear import TILES as GROUP_TILES
from qspec.kernels.triton.group_linear import Codes, group_product
from qspec.kernels.triton.int8_linear import TILES as INT8_TILES
from qspec.kernels.triton.int8_linear import int8_product
from qspec.kernels.triton.plane_linear import Tile, Weights, plane_product
from qspec.kernels.triton.tuned import TunedTable, table_for

SHARED_BYTES = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""What a program may have, by compute capability (CUDA programming guide, "Technical specifications")."""
_LITTLE = 128 << 10
"""Of GPUs that have less than this all kernels are compiled, of others the products whose tiles are tuned."""


def largest_tile(table: TunedTable, planes: int) -> Tile:
    """The one whose reads in flight take most room."""
    tiles = {tile for entry in table.linears
             for tile in (entry.both if planes == 2 else entry.high).tiles.values()}
    def room(tile: Tile) -> int:
        return tile.stages * tile.inputs * (tile.outputs * planes + 2 * tile.rows)
    return max(tiles, key=lambda tile: (room(tile), tile.rows))


def shared_bytes(
    kernel: Any, arch: int, types: dict[str, str], constants: dict[str, Any], *, warps: int, stages: int
) -> int:
    """What a kernel takes of shared memory once it is compiled for compute capability ``arch`` / 10."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {(index,): [["tt.divisibility", 16]] for index, name in enumerate(names)
               if name not in constants and name not in ("M", "groups", "rows", "table_stride", "scale")}
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "num_stages": stages})
    shared: int = compiled.metadata.shared
    return shared


def compiled(arch: int) -> dict[str, int]:
    """Shared memory by kernel and tile."""
    limits = DeviceLimits(divmod(arch, 10), SHARED_BYTES[arch])
    table, overlap = table_for(limits.capability).within(limits), int(arch >= 90)
    pointers = {"x": "*fp16", "high": "*u8", "low": "*u8", "scales": "*fp32", "out": "*fp16", "pieces": "*fp32",
                "arrived": "*i32", "codes": "*i8"}
    found = {}
    one_byte = Weights.HIGH if arch >= 89 else Weights.INT8  # which Ampere, without e4m3, multiplies with these tiles
    for weights, planes in ((Weights.BOTH, 2), (one_byte, 1)):
        types = {**pointers, "high": "*i8" if weights is Weights.INT8 else "*u8"}
        tile = largest_tile(table, planes)
        found[f"{weights.name} {tile}"] = shared_bytes(plane_product, arch, types, {
            "SPLIT": 1, "FINISH": False, "WEIGHTS": int(weights), "WHOLE": True, "ROWS": tile.rows,
            "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "EACH_WAITS": tile.each_waits, "OVERLAP": overlap,
        }, warps=tile.warps, stages=tile.stages)  # fmt: skip
    if limits.shared_bytes >= _LITTLE:
        return found
    tile = GROUP_TILES[64]
    found["groups"] = shared_bytes(group_product, arch, {**pointers, "low": "*i8"}, {
        "CODES": int(Codes.BYTES), "SIXTY_FOURS": 1, "WHOLE": True, "ROWS": tile.rows, "OUTPUTS": tile.outputs,
        "OVERLAP": overlap}, warps=tile.warps, stages=tile.stages)
    tile = INT8_TILES[128]
    found["int8"] = shared_bytes(int8_product, arch, {**pointers, "x": "*i8"}, {
        "ROWS": tile.rows, "OUTPUTS": tile.outputs, "INPUTS": tile.inputs, "OVERLAP": overlap},
        warps=tile.warps, stages=tile.stages)
    caches = dict.fromkeys(("queries", "keys", "values", "tail_keys", "tail_values"), "*fp16")
    integers = dict.fromkeys(("tiles", "positions", "committed", "block_table"), "*i32")
    floats = dict.fromkeys(("sums", "maxima", "totals"), "*fp32")
    found["attention"] = shared_bytes(_attend, arch, {**caches, **integers, **floats, "scale": "fp32"}, {
        "HEADS": 8, "KV_HEADS": 2, "HEAD_DIM": 128, "BLOCK": 64, "TAIL": 8, "PIECE": 256, "INNER": 64,
        "TILE": TILE, "OVERLAP": overlap}, warps=4, stages=stages_of(128, limits))
    return found


if __name__ == "__main__":
    print(json.dumps({each: [SHARED_BYTES[int(each)], compiled(int(each))] for each in sys.argv[1:]}))
