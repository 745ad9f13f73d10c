"""The kernels at the shapes of models, against references in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu.shapes import LLAMA_8B, SMOLLM2_7, linear_shapes
from benchmarks.gpu.weights import WeightCopies
from qspec.kernels import reference
from qspec.kernels.triton.attention import AttentionWorkspace, Context, Rows, attend, plan_tiles
from qspec.kernels.triton.elementwise import Pieces, empty_activations, rms_norm
from qspec.kernels.triton.fp8_linear import apply_scales, fp8_product
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.plane_linear import PlaneWeight, Workspace, product
from qspec.kernels.triton.tuned import table_for
from qspec.quant import e4m3


def _error(out: torch.Tensor, exact: torch.Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("outputs", "inputs"), linear_shapes((LLAMA_8B, SMOLLM2_7))[:-2])
def test_products_by_the_tuned_table(outputs: int, inputs: int, device: torch.device) -> None:
    copies = WeightCopies.random(outputs, inputs, device, 2)
    entry = table_for(torch.cuda.get_device_capability()).linear(outputs, inputs)
    both, alone = entry.both, entry.high
    weight, exact = copies.planes[1], copies.exact(1)
    for rows, dtype, bound in ((1, torch.float32, 1e-4), (64, torch.float16, 5e-4), (300, torch.float32, 1e-4)):
        x = torch.randn(rows, inputs, device=device).half()
        workspace = Workspace.of(max(both.split, alone.split) * rows * outputs, 1 << 16, device)
        out = torch.full((rows, outputs), float("nan"), dtype=dtype, device=device)
        product(arrange(x), weight, both.split, both.tile(rows), out, workspace)
        assert _error(out, x.double() @ exact.t()) < bound
    only_high = PlaneWeight(weight.high, None, weight.scales)
    out.fill_(float("nan"))
    product(arrange(x), only_high, alone.split, alone.tile(rows), out, workspace)
    high = weight.high.view(torch.float8_e4m3fn)
    assert _error(out, reference.linear_fp8_plane(x, high, weight.scales[:, None], None)) < 1e-4


@pytest.mark.parametrize("rows", [1, 4, 17, 256])
def test_fp8_products(rows: int, device: torch.device) -> None:
    outputs, inputs = 6144, 4096
    weight = WeightCopies.random(outputs, inputs, device, 2).planes[0]
    residual = torch.randn(rows, inputs, device=device)
    x = empty_activations(rows, inputs, device, quantised=True)
    rms_norm(residual, None, torch.ones(inputs, device=device), 1e-5, x)
    assert x.scales is not None
    decoded = e4m3.dequantize_rows(x.values, x.scales[:, None]).double()
    normed = residual.double() * (residual.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    assert _error(decoded, normed) < 0.04  # three bits of mantissa
    plane = weight.high.view(torch.float8_e4m3fn).double() * 2.0**-8 * weight.scales.double()[:, None]
    numbers = fp8_product(x, weight.high, torch.ones((), device=device))
    out = torch.full((rows, outputs), float("nan"), device=device)
    apply_scales(numbers, x, weight.scales, out)
    assert _error(out, decoded @ plane.t()) < 1e-2  # sums in the library's fast mode, and bf16
    added = torch.zeros(rows, outputs, device=device)
    rms_norm(added, Pieces(numbers[None], weight.scales, x.scales), torch.ones(outputs, device=device), 1e-5,
             empty_activations(rows, outputs, device, quantised=False))
    assert _error(added, out.double()) < 1e-5


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 8, 128), (63, 21, 64)])
def test_long_contexts(heads: int, kv_heads: int, head_dim: int, device: torch.device) -> None:
    length, queries = 9000, 5  # more pieces than are merged at once
    blocks = -(-length // 16)
    keys, values = torch.randn(2, blocks, kv_heads, 16, head_dim, device=device).half()
    table = torch.randperm(blocks, device=device).int()[None]
    q = torch.randn(queries, heads, head_dim, device=device).half()
    positions = torch.arange(length - queries, length)
    rows = Rows(positions.int().to(device), torch.zeros(queries, device=device).int(),
                plan_tiles([(0, queries)], heads // kv_heads, 4).to(device))
    workspace = AttentionWorkspace.of(length, queries, heads, head_dim, device)
    out = torch.full((queries, heads * head_dim), float("nan"), device=device)
    attend(q, Context(keys, values, table), rows, workspace, out, rearrange=False)
    order = table[0].long().cpu()
    flat = [tensor.cpu()[order].transpose(1, 2).reshape(blocks * 16, kv_heads, head_dim)[:length]
            for tensor in (keys, values)]
    assert _error(out.cpu(), reference.attention(q.cpu(), *flat, positions)) < 2e-3


def test_graphs_replay_products_and_their_counters(device: torch.device) -> None:
    weight = WeightCopies.random(4096, 4096, device, 2)
    cut = table_for(torch.cuda.get_device_capability()).linear(4096, 4096).both
    x, out = torch.randn(5, 4096, device=device).half(), torch.empty(5, 4096, device=device)
    arranged, workspace = arrange(x), Workspace.of(8 * 5 * 4096, 4096, device)
    product(arranged, weight.planes[0], cut.split, cut.tile(5), out, workspace)
    first = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product(arranged, weight.planes[0], cut.split, cut.tile(5), out, workspace)
    for _ in range(50):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, first)
    assert _error(first, x.double() @ weight.exact(0).t()) < 1e-4
