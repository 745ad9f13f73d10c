"""Products over integer weights: times beside the library's fp16 and beside a read of their bytes, and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.bench_run import BenchRun, relative_error
from benchmarks.gpu.shapes import LLAMA_8B, SMOLLM2_7, TRIAL
from benchmarks.gpu.timing import microseconds, over
from benchmarks.gpu.weights import read_all
from qspec.engine.cuda_buffers import gpu_table
from qspec.kernels.triton.group_linear import GroupWeight, group_pieces
from qspec.kernels.triton.group_linear import tile_for as group_tile
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.int8_linear import int8_pieces
from qspec.kernels.triton.int8_linear import tile_for as int8_tile
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, product_pieces

_BYTES = 320 << 20
"""What all copies of a weight take at least."""
_ROWS = (1, 8, 32, 64, 256)
_GROUP = 64
_TILES = (
    Tile(rows=16, inputs=256, stages=2), Tile(rows=16, inputs=256, stages=4),
    Tile(rows=16, outputs=128, inputs=256, stages=3),
    Tile(rows=16, outputs=128, inputs=256, warps=8, stages=3),
)
"""Tried at one and eight rows beside the one in use."""


@dataclass(frozen=True)
class _Kind:
    """One way of storing a weight and multiplying with it."""

    name: str
    bits: float
    """Read for a weight, scales included."""
    copies: Sequence[Any]
    multiply: Callable[[Any, Tensor, int, Tensor, Tile | None], None]
    exact: Callable[[Any], Tensor]
    """float64 ``[N, K]``."""
    scaled: Callable[[Any], Tensor]
    """What the product still is to be multiplied with."""
    whole_numbers: bool = False
    """Whether activations are int8."""


def integers(run: BenchRun) -> Any:
    """Each kind of integer weight, shape and number of rows."""
    figures: list[dict[str, Any]] = []
    gpu = run.device.type == "cuda"
    shapes = [*LLAMA_8B.linears.values(), *list(SMOLLM2_7.linears.values())[2:]] if gpu else [TRIAL.linears["mlp_in"]]
    for outputs, inputs in sorted(shapes, reverse=True):
        copies = max(2, min(16, -(-_BYTES // (outputs * inputs))))
        fp16 = [torch.randn(outputs, inputs, device=run.device).half() for _ in range(2)]
        for kind in _kinds(outputs, inputs, copies, run.device):
            floor = _floor(outputs, inputs, kind.bits, copies, run)
            split = run.table().linear(outputs, inputs).high.split
            for rows in _ROWS if gpu else (2,):
                if run.time_is_up(f"{outputs}x{inputs} {kind.name}, {rows} rows"):
                    return figures
                figures.append(_figure(run, kind, fp16, split, rows, floor))
                run.tell(_line(figures[-1]))
            run.write("integers", figures)
        del fp16
    return figures


def _figure(
    run: BenchRun, kind: _Kind, fp16: list[Tensor], split: int, rows: int, floor: float
) -> dict[str, Any]:
    outputs, inputs = fp16[0].shape
    natural = torch.randn(rows, inputs, device=run.device).half()
    if kind.whole_numbers:
        natural = (natural * 40).clamp(-127, 127).round()
    x = natural.to(torch.int8) if kind.whole_numbers else arrange(natural)
    pieces = torch.full((split, rows, outputs), math.nan, device=run.device)
    times: dict[str, float | None] = {}
    tiles: list[Tile | None] = [None]
    if rows <= 8 and isinstance(kind.copies[0], GroupWeight) and run.device.type == "cuda":
        tiles += _TILES
    for tile in tiles:
        try:
            times["in use" if tile is None else str(tile)] = microseconds(
                [partial(kind.multiply, weight, x, split, pieces, tile) for weight in kind.copies], run.device)
        except (OutOfResources, RuntimeError) as refused:
            times["in use" if tile is None else str(tile)] = None
            run.tell(f"{kind.name} {tile}: {type(refused).__name__}: {str(refused)[:200]}")
    library = microseconds(over(fp16, partial(functional.linear, natural)), run.device)
    pieces.fill_(math.nan)
    kind.multiply(kind.copies[0], x, split, pieces, None)
    first = slice(0, 2048)
    product = pieces.sum(0)[:, first].double() * kind.scaled(kind.copies[0])[first]
    error = relative_error(product, natural.double() @ kind.exact(kind.copies[0])[first].t())
    return {"outputs": outputs, "inputs": inputs, "kind": kind.name, "split": split, "rows": rows, "us": times,
            "floor_us": floor, "cublas_us": library, "error": error}


def _line(figure: dict[str, Any]) -> str:
    shown = "  ".join(
        f"{name} -" if time is None else f"{name} {time:.1f} µs ({time / figure['cublas_us']:.2f} of cuBLAS fp16, "
        f"{time / figure['floor_us']:.2f} of the floor)" for name, time in figure["us"].items())
    return (f"{figure['outputs']}x{figure['inputs']} {figure['kind']} split {figure['split']} M={figure['rows']}: "
            f"error {figure['error']:.1e}: {shown}")


def _floor(outputs: int, inputs: int, bits: float, copies: int, run: BenchRun) -> float:
    size = int(outputs * inputs * bits / 8) // 16384 * 16384
    memory = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=run.device) for _ in range(copies)]
    out = torch.empty(size // 16384, dtype=torch.int32, device=run.device)
    return microseconds([partial(read_all, each, out) for each in memory], run.device)


def _kinds(outputs: int, inputs: int, copies: int, device: torch.device) -> list[_Kind]:
    def nibbles() -> Tensor:
        return torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)

    def scales() -> Tensor:
        return torch.rand(outputs, inputs // _GROUP, device=device) / 100 + 0.001

    codes = [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device) for _ in range(copies)]
    row_scales = torch.rand(outputs, device=device) / 100
    rows = [PlaneWeight(each, None, row_scales) for each in codes]
    four = [GroupWeight(nibbles(), None, scales(), _GROUP) for _ in range(copies)]
    eight = [GroupWeight(each.codes, nibbles(), each.scales, _GROUP) for each in four]
    bytes_ = [GroupWeight(each, None, scales(), _GROUP) for each in codes]

    def of_rows(weight: PlaneWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
        cut = row_cut.tile(x.shape[0]) if tile is None else tile
        product_pieces(x, weight, split, cut, pieces)

    def by_int8(weight: PlaneWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
        int8_pieces(x, weight.high, split, tile or int8_tile(x.shape[0]), pieces)

    def of_groups(weight: GroupWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
        group_pieces(x, weight, split, tile or group_tile(x.shape[0]), pieces)

    row_cut = gpu_table().linear(outputs, inputs).high
    scale_bits = 32 / _GROUP
    ones = torch.ones(outputs, device=device).double()
    return [
        _Kind("int8 row, 16-bit", 8, rows, of_rows, lambda w: w.high.double() * w.scales.double()[:, None],
              lambda w: w.scales.double()),
        _Kind("int8 row, int8", 8, rows, by_int8, lambda w: w.high.double() * w.scales.double()[:, None],
              lambda w: w.scales.double(), whole_numbers=True),
        _Kind("int4 g64, 16-bit", 4 + scale_bits, four, of_groups, _exact, lambda w: ones),
        _Kind("int8 nibbles g64, 16-bit", 8 + scale_bits, eight, of_groups, _exact, lambda w: ones),
        _Kind("int8 g64, 16-bit", 8 + scale_bits, bytes_, of_groups, _exact, lambda w: ones),
    ]


def _exact(weight: GroupWeight) -> Tensor:
    """Of the first 2048 outputs."""
    def signed(packed: Tensor) -> Tensor:
        pairs = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
        return (pairs ^ 8).short() - 8

    codes = weight.codes[:2048]
    if codes.dtype is not torch.int8:
        whole = signed(codes)
        if weight.low is not None:
            whole = whole * 16 + signed(weight.low[:2048])
        codes = whole
    return codes.double() * weight.scales[:2048].double().repeat_interleave(weight.group_size, 1)
