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
from benchmarks.gpu.library_int4 import LibraryInt4
from benchmarks.gpu.read_floor import read_us
from benchmarks.gpu.results_file import Section, Tell, gpu_is_lost
from benchmarks.gpu.shapes import LLAMA_8B, SMOLLM2_7, TRIAL
from benchmarks.gpu.timing import microseconds, over
from qspec.engine.cuda_buffers import gpu_table
from qspec.kernels.triton.group_linear import GroupWeight, group_pieces
from qspec.kernels.triton.group_linear import tile_for as group_tile
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.int8_linear import int8_pieces
from qspec.kernels.triton.int8_linear import tile_for as int8_tile
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, product_pieces

_BYTES = 320 << 20
"""What all copies of a weight take at least."""
_ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
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
    library: Callable[[Any, Tensor], object] | None = None
    """What is timed instead, with bf16 activations in their own order."""


def integers(section: Section, run: BenchRun) -> None:
    """Each kind of integer weight, shape and number of rows."""
    shapes = [*LLAMA_8B.linears.values()] if run.on_gpu else [TRIAL.linears["mlp_in"]]
    if run.on_gpu and not run.quick:
        shapes += list(SMOLLM2_7.linears.values())[2:]
    for outputs, inputs in sorted(shapes, reverse=True):
        copies = max(2, min(16, -(-_BYTES // (outputs * inputs))))
        fp16: list[Tensor] = []
        split = run.table().linear(outputs, inputs).high.split
        for title, make in _KINDS.items():
            if title == LIBRARY_INT4 and not run.on_gpu:
                continue
            names = {rows: f"{outputs}x{inputs} {title} M={rows}" for rows in (_ROWS if run.on_gpu else (2,))}
            if not section.wants(names.values()):
                continue
            if not fp16:
                wanted = max(2, -(-_BYTES // (2 * outputs * inputs))) if run.on_gpu else 2
                fp16 = [torch.randn(outputs, inputs, device=run.device).half() for _ in range(wanted)]
            try:
                kind = make(outputs, inputs, copies, run.device)
            except Exception as error:  # noqa: BLE001  (one kind's failure must not cost the others)
                section.fail(f"{outputs}x{inputs} {title}", error)
                continue
            floor = read_us(int(outputs * inputs * kind.bits / 8), run.device)
            for rows, name in names.items():
                found = section.measure(name, partial(
                    _figure, run, title, kind, fp16, split, rows, floor, section.tell))
                if found is not None:
                    section.tell(_line(found))


def _figure(
    run: BenchRun, title: str, kind: _Kind, fp16: list[Tensor], split: int, rows: int, floor: float, tell: Tell
) -> dict[str, Any]:
    outputs, inputs = fp16[0].shape
    natural = torch.randn(rows, inputs, device=run.device).half()
    if kind.whole_numbers:
        natural = (natural * 40).clamp(-127, 127).round()
    if kind.library:
        x, split, natural = natural.bfloat16(), 1, natural.bfloat16().half()
    else:
        x = natural.to(torch.int8) if kind.whole_numbers else arrange(natural)
    pieces = torch.full((split, rows, outputs), math.nan, device=run.device)
    times: dict[str, float | None] = {}
    tiles: list[Tile | None] = [None]
    if rows <= 8 and isinstance(kind.copies[0], GroupWeight) and run.on_gpu and not run.quick:
        tiles += _TILES
    for tile in tiles:
        try:
            times["in use" if tile is None else str(tile)] = microseconds([
                partial(kind.multiply, weight, x, split, pieces, tile) if kind.library is None else
                partial(kind.library, weight, x) for weight in kind.copies], run.device)
        except (OutOfResources, RuntimeError) as refused:  # of one kernel or tile: the others count
            if gpu_is_lost():
                raise
            times["in use" if tile is None else str(tile)] = None
            tell(f"{title} {tile}: {type(refused).__name__}: {str(refused)[:200]}")
    library = microseconds(over(fp16, partial(functional.linear, natural)), run.device)
    pieces.fill_(math.nan)
    kind.multiply(kind.copies[0], x, split, pieces, None)
    first = slice(0, 2048)
    product = pieces.sum(0)[:, first].double() * kind.scaled(kind.copies[0])[first]
    error = relative_error(product, natural.double() @ kind.exact(kind.copies[0])[first].t())
    return {"outputs": outputs, "inputs": inputs, "kind": title, "split": split, "rows": rows, "us": times,
            "floor_us": floor, "cublas_us": library, "error": error}


def _line(figure: dict[str, Any]) -> str:
    shown = "  ".join(
        f"{name} -" if time is None else f"{name} {time:.1f} µs ({time / figure['cublas_us']:.2f} of cuBLAS fp16, "
        f"{time / figure['floor_us']:.2f} of the floor)" for name, time in figure["us"].items())
    return (f"{figure['outputs']}x{figure['inputs']} {figure['kind']} split {figure['split']} M={figure['rows']}: "
            f"error {figure['error']:.1e}: {shown}")


def _codes(outputs: int, inputs: int, copies: int, device: torch.device) -> list[Tensor]:
    return [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device) for _ in range(copies)]


def _nibbles(outputs: int, inputs: int, copies: int, device: torch.device) -> list[Tensor]:
    return [torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device) for _ in range(copies)]


def _group_scales(outputs: int, inputs: int, copies: int, device: torch.device) -> list[Tensor]:
    return [torch.rand(outputs, inputs // _GROUP, device=device) / 100 + 0.001 for _ in range(copies)]


def _of_rows(whole_numbers: bool) -> Callable[[int, int, int, torch.device], _Kind]:
    def make(outputs: int, inputs: int, copies: int, device: torch.device) -> _Kind:
        scales = torch.rand(outputs, device=device) / 100
        cut = gpu_table().linear(outputs, inputs).high

        def half(weight: PlaneWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
            product_pieces(x, weight, split, tile or cut.tile(x.shape[0]), pieces)

        def int8(weight: PlaneWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
            int8_pieces(x, weight.high, split, tile or int8_tile(x.shape[0]), pieces)

        return _Kind(
            8, [PlaneWeight(each, None, scales) for each in _codes(outputs, inputs, copies, device)],
            int8 if whole_numbers else half, lambda w: w.high.double() * w.scales.double()[:, None],
            lambda w: w.scales.double(), whole_numbers=whole_numbers)

    return make


def _of_groups(bits: int, planes: bool) -> Callable[[int, int, int, torch.device], _Kind]:
    def make(outputs: int, inputs: int, copies: int, device: torch.device) -> _Kind:
        codes = (_nibbles if planes or bits == 4 else _codes)(outputs, inputs, copies, device)
        low: list[Tensor] | list[None] = _nibbles(outputs, inputs, copies, device) if planes else [None] * copies
        scales = _group_scales(outputs, inputs, copies, device)
        ones = torch.ones(outputs, device=device).double()

        def multiply(weight: GroupWeight, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
            group_pieces(x, weight, split, tile or group_tile(x.shape[0]), pieces)

        return _Kind(bits + 32 / _GROUP, [
            GroupWeight(*each, _GROUP) for each in zip(codes, low, scales, strict=True)
        ], multiply, _exact, lambda w: ones)

    return make


def _library_int4(outputs: int, inputs: int, copies: int, device: torch.device) -> _Kind:
    """torch's own int4 in groups (tinygemm), bf16: a peer of ours."""
    ones = torch.ones(outputs, device=device).double()
    made = [LibraryInt4.random(outputs, inputs, _GROUP, device) for _ in range(copies)]

    def multiply(weight: LibraryInt4, x: Tensor, split: int, pieces: Tensor, tile: Tile | None) -> None:
        pieces[0].copy_(weight.product(x))

    return _Kind(4 + 32 / _GROUP, made, multiply, lambda w: w.exact(), lambda w: ones, library=LibraryInt4.product)


LIBRARY_INT4 = "torch int4pack g64, bf16"
_KINDS: dict[str, Callable[[int, int, int, torch.device], _Kind]] = {
    "int8 row, 16-bit": _of_rows(whole_numbers=False),
    "int8 row, int8": _of_rows(whole_numbers=True),
    "int4 g64, 16-bit": _of_groups(4, planes=False),
    LIBRARY_INT4: _library_int4,
    "int8 nibbles g64, 16-bit": _of_groups(8, planes=True),
    "int8 g64, 16-bit": _of_groups(8, planes=False),
}


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
