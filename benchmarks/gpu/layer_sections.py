"""Attention, what lies between the products, and whole layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.read_floor import read_us
from benchmarks.gpu.results_file import Section
from benchmarks.gpu.shapes import SWEEP, ModelShape
from benchmarks.gpu.timing import microseconds, over
from benchmarks.gpu.weights import WeightCopies
from qspec.kernels.triton.attention import AttentionWorkspace, Context, Rows, attend, plan_tiles
from qspec.kernels.triton.elementwise import (
    Activations,
    HeadInputs,
    Pieces,
    RowPlaces,
    empty_activations,
    rms_norm,
    rotate_and_store,
    silu_times_up,
)
from qspec.kernels.triton.embedding import embed
from qspec.kernels.triton.fp8_linear import fp8_product
from qspec.kernels.triton.plane_linear import PlaneWeight, product_pieces
from qspec.kernels.triton.tuned import TunedTable

_BLOCK = 16
Figure = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, some rows each, and their caches in several copies."""

    rows: Rows
    places: RowPlaces
    contexts: tuple[Context, ...]
    pieces: int
    bytes: int
    """What attention reads of one copy."""

    @classmethod
    def of(
        cls, model: ModelShape, sequences: int, queries: int, length: int, copies: int, piece: int, device: torch.device
    ) -> Batch:
        """``queries`` adjacent rows of each sequence, the last at position ``length - 1``."""
        blocks = -(-length // _BLOCK)
        table = torch.randperm(sequences * blocks, device=device).int().view(sequences, blocks)
        shape = (2, sequences * blocks, model.kv_heads, _BLOCK, model.head_dim)
        caches = [torch.randn(shape, device=device, dtype=torch.float16) for _ in range(copies)]
        slots = torch.arange(sequences, device=device).repeat_interleave(queries).int()
        positions = torch.arange(length - queries, length, device=device).repeat(sequences).int()
        tiles = plan_tiles([(slot, queries) for slot in range(sequences)], model.heads // model.kv_heads,
                           sequences * (1 + queries * model.heads // model.kv_heads // 32)).to(device)
        return cls(
            Rows(positions, slots, tiles), RowPlaces(positions, slots, table),
            tuple(Context(keys, values, table) for keys, values in caches), -(-length // piece),
            2 * 2 * sequences * length * model.kv_heads * model.head_dim)


def attention(section: Section, run: BenchRun) -> None:
    """Decode and verify rows over contexts of several lengths, in pieces of three sizes, beside a read of the cache."""
    cases = [(rows, 1, 1024) for rows in SWEEP] + [
        (1, 5, 512), (1, 1, 4096), (1, 5, 4096), (8, 5, 2048), (32, 5, 1024), (1, 256, 1024)
    ] if run.on_gpu else [(2, 3, 40)]
    sizes = ((256,) if run.quick else (128, 256, 512)) if run.on_gpu else (64,)
    for model in run.models:
        for sequences, queries, length in cases:
            name = f"{model.name}: {sequences} sequences of {length}, {queries} rows each"
            found = section.measure(name, partial(_attention, model, sequences, queries, length, sizes, run))
            if found is not None:
                shown = "  ".join(f"{piece}: {time:.1f} µs" for piece, time in found["us"].items())
                section.tell(f"{name}: floor {found['floor_us']:.1f} µs; pieces of {shown}")


def _attention(
    model: ModelShape, sequences: int, queries: int, length: int, sizes: tuple[int, ...], run: BenchRun
) -> Figure:
    times: dict[str, float] = {}
    bytes_ = 0
    for piece in sizes:
        copies = max(2, min(8, (256 << 20) // (4 * sequences * length * model.kv_heads * model.head_dim)))
        batch = Batch.of(model, sequences, queries, length, copies, piece, run.device)
        rows, bytes_ = sequences * queries, batch.bytes
        workspace = AttentionWorkspace.of(length, rows, model.heads, model.head_dim, run.device, piece)
        times[str(piece)] = _attention_time(model, batch, workspace, rows, run)
    return {"model": model.name, "sequences": sequences, "queries": queries, "length": length, "kv_bytes": bytes_,
            "floor_us": read_us(bytes_, run.device), "us": times}


def _attention_time(
    model: ModelShape, batch: Batch, workspace: AttentionWorkspace, rows: int, run: BenchRun
) -> float:
    q = torch.randn(rows, model.heads, model.head_dim, device=run.device).half()
    out = torch.empty(rows, model.heads * model.head_dim, dtype=torch.float16, device=run.device)
    calls = over(batch.contexts, lambda context: attend(q, context, batch.rows, workspace, out, pieces=batch.pieces))
    return microseconds(calls, run.device)


def elementwise(section: Section, run: BenchRun) -> None:
    """Each kernel between the products, in µs, launch gap of a graph included, beside a read of what it touches."""
    counts = (1,) if run.quick else (1, 4)
    for model in run.models:
        for rows in SWEEP if run.on_gpu else (2,):
            for count in counts:
                name = f"{model.name} M={rows}, {count} pieces"
                found = section.measure(name, partial(_elementwise, model, rows, count, run))
                if found is not None:
                    floors = found["floor_us"]
                    shown = "  ".join(
                        f"{kernel} {time:.1f} ({floors[kernel]:.1f})" for kernel, time in found["us"].items())
                    section.tell(f"{name}, µs (floor): {shown}")


def _elementwise(model: ModelShape, rows: int, count: int, run: BenchRun) -> Figure:
    calls = _elementwise_calls(model, rows, count, run)
    return {"model": model.name, "rows": rows, "pieces": count,
            "us": {name: microseconds([call], run.device) for name, (call, _) in calls.items()},
            "floor_us": {name: read_us(bytes_, run.device) for name, (_, bytes_) in calls.items()}}


def _elementwise_calls(
    model: ModelShape, rows: int, count: int, run: BenchRun
) -> dict[str, tuple[Callable[[], object], int]]:
    """Calls, and the bytes that each reads and writes. ``count``: pieces of the product before."""
    device, layer = run.device, Layer(model, rows, run, None)

    def pieces(width: int) -> Pieces:
        return Pieces(torch.randn(count, rows, width, device=device), layer.ones(width))

    hidden, middle, qkv = pieces(model.hidden), pieces(2 * model.intermediate), pieces(model.qkv)
    weight, zeros = layer.ones(model.hidden), torch.zeros(rows, dtype=torch.int32, device=device)
    batch = Batch.of(model, 1, 1, 64, 1, 256, device)
    places, context = RowPlaces(zeros, zeros, batch.places.block_table), batch.contexts[0]
    norm = rows * model.hidden * (4 * count + 8) + 4 * 2 * model.hidden  # pieces, the residual both ways; weights
    silu, heads = 4 * count * rows * 2 * model.intermediate, rows * model.qkv * (4 * count + 2)
    tokens = torch.randint(0, model.vocabulary, (rows,), dtype=torch.int32, device=device)
    embedding = torch.randn(model.vocabulary, model.hidden, device=device).half()
    return {
        "norm": (lambda: rms_norm(layer.residual, hidden, weight, 1e-5, layer.normed), norm + 2 * rows * model.hidden),
        "norm e4m3": (lambda: rms_norm(layer.residual, hidden, weight, 1e-5, layer.normed8),
                      norm + rows * model.hidden),
        "silu": (lambda: silu_times_up(middle, layer.middle), silu + 2 * rows * model.intermediate),
        "silu e4m3": (lambda: silu_times_up(middle, layer.middle8), silu + rows * model.intermediate),
        "rotary": (lambda: rotate_and_store(
            qkv, layer.heads, places, layer.queries, context.keys, context.values), heads),
        "embed": (lambda: embed(tokens, embedding, layer.residual), rows * model.hidden * 6),
    }


class Layer:
    """One decoder layer's launches over given weights, all buffers provided for."""

    def __init__(self, model: ModelShape, rows: int, run: BenchRun, table: TunedTable | None) -> None:
        device = self._device = run.device
        self.model, self._rows, self._table = model, rows, table
        self.residual = torch.randn(rows, model.hidden, device=device)
        self.normed = empty_activations(rows, model.hidden, device, quantised=False)
        self.normed8 = empty_activations(rows, model.hidden, device, quantised=True)
        self.middle = empty_activations(rows, model.intermediate, device, quantised=False)
        self.middle8 = empty_activations(rows, model.intermediate, device, quantised=True)
        self.queries = torch.empty(rows, model.heads, model.head_dim, dtype=torch.float16, device=device)
        self.attended = torch.empty(rows, model.heads * model.head_dim, dtype=torch.float16, device=device)
        angles = torch.rand(8192, model.head_dim, device=device)
        self.heads = HeadInputs(heads=model.heads, kv_heads=model.kv_heads, cos=angles.cos(), sin=angles.sin())
        self._norm, self._one = self.ones(model.hidden), torch.ones((), device=device)
        self._numbers: dict[str, Tensor] = {}
        for normed in (self.normed, self.normed8):
            rms_norm(self.residual, None, self._norm, 1e-5, normed)

    def ones(self, count: int) -> Tensor:
        """Norm weights and scales."""
        return torch.ones(count, device=self._device)

    def run(self, weights: dict[str, PlaneWeight], batch: Batch, context: Context, workspace: AttentionWorkspace,
            *, fp8: bool) -> None:
        """The whole layer, from its first norm's output to the next one's; ``fp8``: e4m3 but for attention's output."""
        normed, middle = (self.normed8, self.middle8) if fp8 else (self.normed, self.middle)
        qkv = self._product("qkv", weights["qkv"], normed)
        rotate_and_store(qkv, self.heads, batch.places, self.queries, context.keys, context.values)
        attend(self.queries, context, batch.rows, workspace, self.attended, pieces=batch.pieces)
        added = self._product("attention_out", weights["attention_out"], Activations(self.attended, None))
        rms_norm(self.residual, added, self._norm, 1e-5, normed)
        silu_times_up(self._product("mlp_in", weights["mlp_in"], normed), middle)
        added = self._product("mlp_out", weights["mlp_out"], middle)
        rms_norm(self.residual, added, self._norm, 1e-5, normed)

    def _product(self, name: str, weight: PlaneWeight, x: Activations) -> Pieces:
        if x.scales is not None:
            return Pieces(fp8_product(x, weight.high, self._one)[None], weight.scales, x.scales)
        assert self._table is not None
        cut = self._table.linear(*weight.high.shape).cut(weight.reads)
        if name not in self._numbers:
            self._numbers[name] = torch.empty(cut.split, self._rows, weight.high.shape[0], device=self._device)
        product_pieces(x.values, weight, cut.split, cut.tile(self._rows), self._numbers[name])
        return Pieces(self._numbers[name], weight.scales)


LAYERS = (("both", False, False), ("high", True, False), ("fp8", True, True))
"""Name, whether the high plane alone, whether e4m3 activations."""


def layer(section: Section, run: BenchRun) -> None:
    """Whole layers in one graph, beside a read of their weights: both planes, the high one, and fp8."""
    table = run.table()
    cases = [(1, 1), (1, 5), (8, 1), (8, 5), (32, 1), (32, 5)][: 5 if run.quick else 6] if run.on_gpu else [(2, 2)]
    for model in run.models:
        names = {case: f"{model.name} layer, {case[0]} sequences, {case[1]} rows each" for case in cases}
        if not section.wants(names.values()):
            continue
        stacks = {name: WeightCopies.random(*shape, run.device, 4 if run.on_gpu else 2)
                  for name, shape in model.linears.items()}
        for (sequences, queries), name in names.items():
            found = section.measure(name, partial(_layer, model, stacks, sequences, queries, table, run))
            if found is not None:
                weights = found["weights"]
                section.tell(f"{name}: " + "  ".join(
                    f"{kind} {time:.1f} µs ({weights * (2 if kind == 'both' else 1) / time / 1e6:.2f} TB/s)"
                    for kind, time in found["us"].items()))
        del stacks


def _layer(
    model: ModelShape, stacks: dict[str, WeightCopies], sequences: int, queries: int, table: TunedTable, run: BenchRun
) -> Figure:
    length, rows = 512 if run.on_gpu else 32, sequences * queries
    batch = Batch.of(model, sequences, queries, length, 2, 256, run.device)
    workspace = AttentionWorkspace.of(length, rows, model.heads, model.head_dim, run.device)
    times = {}
    for name, high, fp8 in LAYERS:
        if fp8 and not run.on_gpu:
            continue
        buffers = Layer(model, rows, run, table)
        calls = []
        for copy in range(len(stacks["qkv"].planes)):
            weights = {part: (stack.high if high else stack.planes)[copy] for part, stack in stacks.items()}
            calls.append(partial(buffers.run, weights, batch, batch.contexts[copy % 2], workspace, fp8=fp8))
        times[name] = microseconds(calls, run.device)
    weight_bytes = sum(outputs * inputs for outputs, inputs in model.linears.values())
    return {"model": model.name, "sequences": sequences, "queries": queries, "length": length,
            "weights": weight_bytes, "us": times}
