"""Products: the floor, every kernel's time, and whether a row's bits depend on the rows beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.bench_run import BenchRun, relative_error
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
from qspec.kernels.triton.tuned import TunedTable


def floor(run: BenchRun) -> Any:
    """What reading and copying bytes takes."""
    figures = []
    sizes = (16, 32, 64, 117, 235, 525) if run.device.type == "cuda" else (1,)
    for mebibytes in sizes:
        copies = [torch.randint(0, 255, (mebibytes << 20,), dtype=torch.uint8, device=run.device)
                  for _ in range(max(2, -(-512 // mebibytes)))]
        out = torch.empty((mebibytes << 20) // 16384, dtype=torch.int32, device=run.device)
        read = microseconds([partial(read_all, copy, out) for copy in copies], run.device)
        target = torch.empty_like(copies[0])
        copied = microseconds(over(copies, target.copy_), run.device)
        bytes_ = mebibytes << 20
        figures.append({"bytes": bytes_, "read_us": read, "read_tb_s": bytes_ / read / 1e6,
                        "copy_tb_s": 2 * bytes_ / copied / 1e6})
        run.tell(f"{mebibytes} MiB: read {read:.1f} µs = {bytes_ / read / 1e6:.2f} TB/s, "
                 f"copy {2 * bytes_ / copied / 1e6:.2f} TB/s (both ways)")
    return figures


def tune(run: BenchRun) -> Any:
    """Split and tiles of every shape; writes ``hopper.json``."""
    entries, figures = [], []
    candidates = CANDIDATES if run.device.type == "cuda" else {16: CANDIDATES[16][:1]}
    for outputs, inputs in linear_shapes(run.models):
        if run.time_is_up(f"{outputs}x{inputs}"):
            break
        entry, measured = tune_shape(outputs, inputs, run.device, run.tell, candidates)
        entries.append(entry)
        figures += measured
        name = torch.cuda.get_device_name() if run.device.type == "cuda" else "trial"
        run.write("hopper", TunedTable("hopper", name, tuple(entries)).to_json())
    return figures


def tune_many(run: BenchRun) -> Any:
    """Tiles of both planes for 64, 128 and 256 rows alone, at the table's split, so that no bit changes; writes
    ``hopper.json``.
    """
    entries, figures = list(run.table().linears), []
    for outputs, inputs in linear_shapes((*run.models, SMOLLM2_12) if run.device.type == "cuda" else run.models):
        if run.time_is_up(f"{outputs}x{inputs}"):
            break
        before = run.table().linear(outputs, inputs)
        entry, measured = tune_tiles(before, run.device, run.tell)
        entries = [each for each in entries if (each.outputs, each.inputs) != (outputs, inputs)] + [entry]
        figures += measured
        for rows in (64, 128, 256):
            of_rows = sorted((each for each in measured if each["rows"] == rows), key=lambda each: float(each["us"]))
            run.tell(f"{outputs}x{inputs} split {entry.both.split} M={rows}: " + "  ".join(
                f"{each['us']:.1f} {each['tile']}" for each in of_rows[:3]))
        name = torch.cuda.get_device_name() if run.device.type == "cuda" else "trial"
        run.write("hopper", TunedTable("hopper", name, tuple(entries)).to_json())
    return figures


def linear(run: BenchRun) -> Any:
    """Every kernel, shape and number of rows."""
    figures: list[dict[str, Any]] = []
    table = run.table()
    for outputs, inputs in linear_shapes(run.models):
        copies = WeightCopies.random(outputs, inputs, run.device)
        floors = _floors(copies, run)
        for rows in run.rows:
            if run.time_is_up(f"{outputs}x{inputs}, {rows} rows"):
                return figures
            times: dict[str, float | None] = {}
            for name, calls in _products(copies, rows, table, run).items():
                try:
                    times[name] = microseconds(calls, run.device)
                except (OutOfResources, RuntimeError) as refused:
                    times[name] = None
                    run.tell(f"{name}: {type(refused).__name__}: {str(refused)[:300]}")
            error = _error(copies, rows, table, run)
            figures.append({"outputs": outputs, "inputs": inputs, "rows": rows, **floors, "us": times, "error": error})
            base = times["cuBLAS fp16"] or math.nan
            shown = "  ".join(f"{name} {'-' if time is None else f'{time:.1f} ({time / base:.2f})'}"
                              for name, time in times.items())
            run.tell(f"{outputs}x{inputs} M={rows}: floor {floors['both_floor_us']:.1f}/{floors['high_floor_us']:.1f} "
                     f"µs, error {error:.1e}: {shown}")
        run.write("linear", figures)
        del copies
    return figures


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


def invariance(run: BenchRun) -> Any:
    """Rows computed in batches of many sizes, at many places, by every tile, against one row alone."""
    results: list[dict[str, Any]] = []
    shapes = [(4096, 4096), (28672, 4096), (4032, 10752)] if run.device.type == "cuda" else [(128, 192)]
    numbers = (1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 128, 256) if run.device.type == "cuda" else (1, 2, 5)
    tiles = [tile for tiles in CANDIDATES.values() for tile in tiles] if run.device.type == "cuda" else [Tile(rows=16)]
    for outputs, inputs in shapes:
        split = run.table().linear(outputs, inputs).both.split
        weight = WeightCopies.random(outputs, inputs, run.device, 2).planes[0]
        assert weight.low is not None
        scratch = torch.empty(outputs, inputs, dtype=torch.float16, device=run.device)
        merge_into(weight.high, weight.low, scratch, rearrange=True)
        x = arrange(torch.randn(max(numbers), inputs, device=run.device).half())
        alone = torch.cat([_product(x[i : i + 1], weight, split, Tile(rows=16)) for i in range(min(16, max(numbers)))])
        variants = [(f"both {tile}", weight, tile) for tile in tiles]
        variants += [(f"merged {tile}", PlaneWeight(scratch, None, weight.scales), tile) for tile in tiles[-3:]]
        variants.append(("mma.sync", weight, Tile(rows=8)))  # another instruction: are its bits others?
        for name, read, tile in variants:
            if run.time_is_up(name):
                return results
            differing = 0
            for rows in numbers:
                if tile.rows == 8 and rows > 16:
                    continue
                for shift in {0, 1, rows - 1}:  # the first rows at other places, and others beside them
                    placed = x[:rows].roll(shift, 0)
                    out = _product(placed, read, split, tile).roll(-shift, 0)
                    same = min(rows, len(alone))
                    differing += int((out[:same] != alone[:same]).sum())
            results.append({"outputs": outputs, "inputs": inputs, "split": split, "variant": name,
                            "differing": differing})
            verdict = f"{differing} DIFFER" if differing else "SAME BITS"
            run.tell(f"{outputs}x{inputs} split {split} {name}: {verdict}")
        x16 = torch.randn(32, inputs, device=run.device).half()
        library = functional.linear(x16, scratch)
        differing = sum(
            int((functional.linear(x16[:rows], scratch) != library[:rows]).sum()) for rows in (1, 2, 4, 8, 16, 32))
        results.append({"outputs": outputs, "inputs": inputs, "variant": "cuBLAS fp16", "differing": differing})
        run.tell(f"{outputs}x{inputs} cuBLAS fp16 over row counts: {differing} differ")
    return results


def _product(x: Tensor, weight: PlaneWeight, split: int, tile: Tile) -> Tensor:
    pieces = torch.full((split, x.shape[0], weight.high.shape[0]), math.nan, device=x.device)
    product_pieces(x, weight, split, tile, pieces)
    total = pieces[0].clone()
    for piece in pieces[1:]:
        total += piece
    return total
