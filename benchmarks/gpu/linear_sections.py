"""Products: the floor, every kernel's time, and whether a row's bits depend on the rows beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.bench_run import BenchRun, relative_error
from benchmarks.gpu.results_file import Section, Tell, gpu_is_lost
from benchmarks.gpu.rows_first import CONFIGS, rows_first
from benchmarks.gpu.shapes import SMOLLM2_12, linear_shapes
from benchmarks.gpu.timing import microseconds, over
from benchmarks.gpu.tuning import CANDIDATES, tune_shape, tune_tiles
from benchmarks.gpu.weights import WeightCopies, memory_of, read_all
from qspec.kernels.triton.elementwise import Activations
from qspec.kernels.triton.fp8_linear import fp8_product
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, Workspace, piece_length, product, product_pieces
from qspec.kernels.triton.planes import merge_into
from qspec.kernels.triton.tuned import LinearTuning, TunedTable

Figure = dict[str, Any]


def floor(section: Section, run: BenchRun) -> None:
    """What reading and copying bytes takes."""
    for mebibytes in (1, 4, 16, 32, 64, 117, 235, 525) if run.on_gpu else (1,):
        found = section.measure(f"{mebibytes} MiB", partial(_floor, mebibytes, run))
        if found is not None:
            section.tell(f"{mebibytes} MiB: read {found['read_us']:.1f} µs = {found['read_tb_s']:.2f} TB/s, "
                         f"copy {found['copy_tb_s']:.2f} TB/s (both ways)")


def _floor(mebibytes: int, run: BenchRun) -> Figure:
    size = mebibytes << 20
    copies = [torch.randint(0, 255, (size,), dtype=torch.uint8, device=run.device)
              for _ in range(max(2, -(-512 // mebibytes)))] if run.on_gpu else [
                  torch.zeros(size, dtype=torch.uint8)] * 2
    out = torch.empty(size // 16384, dtype=torch.int32, device=run.device)
    read = microseconds([partial(read_all, copy, out) for copy in copies], run.device)
    target = torch.empty_like(copies[0])
    copied = microseconds(over(copies, target.copy_), run.device)
    return {"bytes": size, "read_us": read, "read_tb_s": size / read / 1e6, "copy_tb_s": 2 * size / copied / 1e6}


def tune(section: Section, run: BenchRun) -> None:
    """Split and tiles of every shape; writes ``hopper.json``."""
    candidates = CANDIDATES if run.on_gpu else {16: CANDIDATES[16][:1]}
    entries: list[LinearTuning] = []
    for outputs, inputs in linear_shapes(run.models):
        def measured(outputs: int = outputs, inputs: int = inputs) -> Figure:
            entry, figures = tune_shape(outputs, inputs, run.device, section.tell, candidates)
            return {"entry": TunedTable("", None, (entry,)).to_json(), "figures": figures}

        if (found := section.measure(f"{outputs}x{inputs}", measured)) is not None:
            entries += TunedTable.parse(found["entry"]).linears
            run.write_table(TunedTable("hopper", _gpu_name(run), tuple(entries)))


def tune_many(section: Section, run: BenchRun) -> None:
    """Tiles of both planes for 64, 128 and 256 rows alone, at the table's split, so that no bit changes; writes
    ``hopper.json``.
    """
    for outputs, inputs in linear_shapes((*run.models, SMOLLM2_12) if run.on_gpu and not run.quick else run.models):
        before = run.table().linear(outputs, inputs)

        def measured(before: LinearTuning = before) -> Figure:
            entry, figures = tune_tiles(before, run.device, section.tell)
            return {"entry": TunedTable("", None, (entry,)).to_json(), "figures": figures}

        if (found := section.measure(f"{outputs}x{inputs}", measured)) is None:
            continue
        (entry,) = TunedTable.parse(found["entry"]).linears
        others = [each for each in run.table().linears if (each.outputs, each.inputs) != (outputs, inputs)]
        run.write_table(TunedTable("hopper", _gpu_name(run), (*others, entry)))
        for rows in (64, 128, 256):
            of_rows = sorted((each for each in found["figures"] if each["rows"] == rows), key=lambda each: each["us"])
            section.tell(f"{outputs}x{inputs} split {entry.both.split} M={rows}: " + "  ".join(
                f"{each['us']:.1f} {each['tile']}" for each in of_rows[:3]))


def _gpu_name(run: BenchRun) -> str:
    return torch.cuda.get_device_name() if run.on_gpu else "trial"


def linear(section: Section, run: BenchRun) -> None:
    """Every kernel, shape and number of rows."""
    table = run.table()
    for outputs, inputs in linear_shapes(run.models):
        names = {rows: f"{outputs}x{inputs} M={rows}" for rows in run.rows}
        if not section.wants(names.values()):
            continue
        copies = WeightCopies.random(outputs, inputs, run.device)
        floors = _floors(copies, run)
        for rows, name in names.items():
            found = section.measure(name, partial(_linear_figure, copies, floors, rows, table, run, section.tell))
            if found is not None:
                base = found["us"]["cuBLAS fp16"] or math.nan
                shown = "  ".join(f"{kernel} {'-' if time is None else f'{time:.1f} ({time / base:.2f})'}"
                                  for kernel, time in found["us"].items())
                section.tell(f"{name}: floor {found['both_floor_us']:.1f}/{found['high_floor_us']:.1f} µs, "
                             f"error {found['error']:.1e}: {shown}")
        del copies


def _linear_figure(
    copies: WeightCopies, floors: dict[str, float], rows: int, table: TunedTable, run: BenchRun, tell: Tell
) -> Figure:
    outputs, inputs = copies.planes[0].high.shape
    times: dict[str, float | None] = {}
    for name, calls in _products(copies, rows, table, run).items():
        try:
            times[name] = microseconds(calls, run.device)
        except (OutOfResources, RuntimeError) as refused:  # of one kernel or tile: the others count
            if gpu_is_lost():
                raise
            times[name] = None
            tell(f"{name}: {type(refused).__name__}: {str(refused)[:300]}")
    return {"outputs": outputs, "inputs": inputs, "rows": rows, **floors, "us": times,
            "error": _error(copies, rows, table, run)}


def _floors(copies: WeightCopies, run: BenchRun) -> dict[str, float]:
    numbers = copies.planes[0].high.numel()
    out = torch.empty(-(-numbers // 16384) * 2, dtype=torch.int32, device=run.device)
    pairs = [(plane.high, plane.low) for plane in copies.planes if plane.low is not None]
    high = microseconds([partial(read_all, memory_of(high), out) for high, _ in pairs], run.device)
    both = microseconds([partial(read_all, weight.view(torch.uint8), out) for weight in copies.fp16], run.device)
    return {"both_floor_us": both, "high_floor_us": high}


def _products(
    copies: WeightCopies, rows: int, table: TunedTable, run: BenchRun
) -> dict[str, list[Callable[[], object]]]:
    outputs, inputs = copies.planes[0].high.shape
    device, entry = run.device, table.linear(outputs, inputs)
    cut, high = entry.both, entry.high
    tile = cut.tile(rows)
    natural = torch.randn(rows, inputs, device=device).half()
    x = arrange(natural)
    pieces = torch.empty(cut.split, rows, outputs, device=device)
    high_pieces = torch.empty(high.split, rows, outputs, device=device)
    out = torch.empty(rows, outputs, dtype=torch.float16, device=device)
    workspace = Workspace(pieces, torch.zeros(1 << 16, dtype=torch.int32, device=device))
    calls: dict[str, list[Callable[[], object]]] = {
        "cuBLAS fp16": over(copies.fp16, partial(functional.linear, natural)),
        "both": over(copies.planes, lambda weight: product_pieces(x, weight, cut.split, tile, pieces)),
        "both, finished": over(copies.planes, lambda weight: product(x, weight, cut.split, tile, out, workspace)),
        "high, 16-bit": over(
            copies.high, lambda weight: product_pieces(x, weight, high.split, high.tile(rows), high_pieces)),
    }
    chunk = piece_length(inputs, cut.split)
    if not run.quick and rows <= 64 and chunk % 128 == 0 and inputs % 128 == 0:
        for config in CONFIGS[:2] if rows <= 32 else CONFIGS[3:]:
            calls[f"rows first {config[0]}x{config[1]}"] = [
                partial(rows_first, natural, weight.high, weight.low, pieces, chunk, config)
                for weight in copies.planes if weight.low is not None
            ]
    if device.type == "cuda":
        one = torch.ones((), device=device)
        activations = Activations(natural.to(torch.float8_e4m3fn), None)
        calls["fp8"] = over(copies.planes, lambda weight: fp8_product(activations, weight.high, one))
    if not run.quick and rows >= 128:
        scratch = torch.empty(outputs, inputs, dtype=torch.float16, device=device)
        merged = PlaneWeight(scratch, None, copies.planes[0].scales)

        def merge_and_library(weight: PlaneWeight) -> Tensor:
            assert weight.low is not None
            merge_into(weight.high, weight.low, scratch, rearrange=False)
            return functional.linear(natural, scratch)

        calls["merge, cuBLAS"] = over(copies.planes, merge_and_library)
        large = Tile(rows=256 if rows >= 256 else 128, outputs=128, inputs=64, warps=8, stages=4)
        calls["merged alone"] = [lambda: product_pieces(x, merged, cut.split, large, pieces)]
    return calls


def _error(copies: WeightCopies, rows: int, table: TunedTable, run: BenchRun) -> float:
    """Of the finished product of both planes in fp32 output, with fresh inputs and a poisoned output."""
    outputs, inputs = copies.planes[1].high.shape
    cut = table.linear(outputs, inputs).both
    x = torch.randn(rows, inputs, device=run.device).half()
    out = torch.full((rows, outputs), math.nan, device=run.device)
    workspace = Workspace.of(cut.split * rows * outputs, 1 << 16, run.device)
    product(arrange(x), copies.planes[1], cut.split, cut.tile(rows), out, workspace)
    if outputs * inputs > 1 << 28:  # lm_head: float64 of it is gigabytes, so some outputs
        copies = WeightCopies(tuple(PlaneWeight(p.high[:4096], None if p.low is None else p.low[:4096], p.scales[:4096])
                                    for p in copies.planes[:2]))
        out = out[:, :4096]
    return relative_error(out, x.double() @ copies.exact(1).t())


def invariance(section: Section, run: BenchRun) -> None:
    """Rows computed in batches of many sizes, at many places, by every tile, against one row alone."""
    tiles = [tile for tiles in CANDIDATES.values() for tile in tiles] if run.on_gpu else [Tile(rows=16)]
    for outputs, inputs in [(4096, 4096), (28672, 4096), (4032, 10752)] if run.on_gpu else [(128, 192)]:
        split = run.table().linear(outputs, inputs).both.split
        of_shape = f"{outputs}x{inputs} split {split}"
        names = [f"{of_shape} both {tile}" for tile in tiles] + [f"{of_shape} merged {tile}" for tile in tiles[-3:]]
        library = f"{of_shape} cuBLAS fp16"
        if not section.wants([*names, f"{of_shape} mma.sync", library]):
            continue
        rows = _InvariantRows.of(outputs, inputs, split, run)
        variants = [(rows.weight, tile) for tile in tiles] + [(rows.merged, tile) for tile in tiles[-3:]]
        names.append(f"{of_shape} mma.sync")  # another instruction: are its bits others?
        variants.append((rows.weight, Tile(rows=8)))
        for name, (read, tile) in zip(names, variants, strict=True):
            found = section.measure(name, partial(rows.differing, read, tile))
            if found is not None:
                section.tell(f"{name}: {f'{found} DIFFER' if found else 'SAME BITS'}")
        section.tell(f"{library}: {section.measure(library, rows.differing_by_library)} differ")


@dataclass(frozen=True)
class _InvariantRows:
    """Rows, a weight in planes and merged, and each row's product alone."""

    weight: PlaneWeight
    merged: PlaneWeight
    split: int
    numbers: tuple[int, ...]
    x: Tensor
    alone: Tensor

    @classmethod
    def of(cls, outputs: int, inputs: int, split: int, run: BenchRun) -> _InvariantRows:
        numbers = (1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 128, 256) if run.on_gpu else (1, 2, 5)
        weight = WeightCopies.random(outputs, inputs, run.device, 2).planes[0]
        assert weight.low is not None
        scratch = torch.empty(outputs, inputs, dtype=torch.float16, device=run.device)
        merge_into(weight.high, weight.low, scratch, rearrange=True)
        x = arrange(torch.randn(max(numbers), inputs, device=run.device).half())
        alone = torch.cat([_product(x[i : i + 1], weight, split, Tile(rows=16)) for i in range(min(16, max(numbers)))])
        return cls(weight, PlaneWeight(scratch, None, weight.scales), split, numbers, x, alone)

    def differing(self, read: PlaneWeight, tile: Tile) -> int:
        """Numbers that are not those of a row alone."""
        differing = 0
        for rows in self.numbers:
            if tile.rows == 8 and rows > 16:
                continue
            for shift in {0, 1, rows - 1}:  # the first rows at other places, and others beside them
                placed = self.x[:rows].roll(shift, 0)
                out = _product(placed, read, self.split, tile).roll(-shift, 0)
                same = min(rows, len(self.alone))
                differing += int((out[:same] != self.alone[:same]).sum())
        return differing

    def differing_by_library(self) -> int:
        """The same of the library, over some numbers of rows."""
        x = self.x[:32]
        whole = functional.linear(x, self.merged.high)
        return sum(int((functional.linear(x[:rows], self.merged.high) != whole[:rows]).sum())
                   for rows in (1, 2, 4, 8, 16, 32) if rows <= len(x))


def _product(x: Tensor, weight: PlaneWeight, split: int, tile: Tile) -> Tensor:
    pieces = torch.full((split, x.shape[0], weight.high.shape[0]), math.nan, device=x.device)
    product_pieces(x, weight, split, tile, pieces)
    total = pieces[0].clone()
    for piece in pieces[1:]:
        total += piece
    return total
