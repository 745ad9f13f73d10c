"""A row's bits do not depend on the rows beside it, on its place, or on how the work is cut up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.gpu.tuning import CANDIDATES
from benchmarks.gpu.weights import WeightCopies
from qspec.kernels.triton.attention import AttentionWorkspace, Context, Rows, attend, plan_tiles
from qspec.kernels.triton.elementwise import Activations, Pieces, empty_activations, rms_norm, silu_times_up
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, Workspace, product, product_pieces
from qspec.kernels.triton.planes import merge_into

ROWS = (1, 2, 3, 4, 5, 8, 16, 17, 32, 64, 128, 256)
TILES = tuple(dict.fromkeys(tile for tiles in CANDIDATES.values() for tile in tiles))


def _pieces(x: Tensor, weight: PlaneWeight, split: int, tile: Tile) -> Tensor:
    pieces = torch.full((split, x.shape[0], weight.high.shape[0]), float("nan"), device=x.device)
    product_pieces(x, weight, split, tile, pieces)
    return pieces


@pytest.mark.parametrize(
    ("outputs", "inputs", "split"), [(1024, 4096, 4), (512, 4032, 3), (2064, 1024, 1)], ids=["even", "uneven", "whole"])
def test_products(outputs: int, inputs: int, split: int, device: torch.device) -> None:
    weight = WeightCopies.random(outputs, inputs, device, 2).planes[0]
    assert weight.low is not None
    x = arrange(torch.randn(256, inputs, device=device).half())
    alone = torch.cat([_pieces(x[row : row + 1], weight, split, Tile(rows=16)) for row in range(256)], 1)
    scratch = torch.empty(outputs, inputs, dtype=torch.float16, device=device)
    merge_into(weight.high, weight.low, scratch, rearrange=True)
    for tile in TILES:
        for read in (weight, PlaneWeight(scratch, None, weight.scales)):
            for rows in ROWS:
                for start in {0, 256 - rows, (256 - rows) // 2}:
                    together = _pieces(x[start : start + rows].contiguous(), read, split, tile)
                    assert torch.equal(together, alone[:, start : start + rows]), (tile, read.reads, rows, start)


def test_finished_products_add_up_the_same_pieces(device: torch.device) -> None:
    weight = WeightCopies.random(1040, 4096, device, 2).planes[1]
    x = arrange(torch.randn(70, 4096, device=device).half())
    pieces = _pieces(x, weight, 4, TILES[0])
    expected = (((pieces[0] + pieces[1]) + pieces[2]) + pieces[3]) * weight.scales
    out = torch.full((70, 1040), float("nan"), device=device)
    workspace = Workspace.of(4 * 70 * 1040, 4096, device)
    for tile in TILES:
        for _ in range(20):  # whoever arrives last
            out.fill_(float("nan"))
            product(x, weight, 4, tile, out, workspace)
            assert torch.equal(out, expected), tile


def test_norm_and_activation(device: torch.device) -> None:
    width, weight = 4032, torch.randn(4032, device=device)
    numbers, scales = torch.randn(4, 64, width, device=device), torch.rand(width, device=device)
    residual = torch.randn(64, width, device=device)

    def norms(rows: slice) -> Tensor:
        here = residual[rows].clone()
        out = empty_activations(here.shape[0], width, device, quantised=False)
        rms_norm(here, Pieces(numbers[:, rows].contiguous(), scales), weight, 1e-5, out)
        return torch.cat([here, out.values.float()], 1)

    def activations(rows: slice) -> Tensor:
        out = Activations(torch.empty(rows.stop - rows.start, width // 2 // 64 * 64, device=device).half(), None)
        narrow = out.values.shape[1]
        middle = numbers[:, rows, : 2 * narrow].contiguous()
        silu_times_up(Pieces(middle, scales[: 2 * narrow].contiguous()), out)
        return out.values

    for function in (norms, activations):
        together = function(slice(0, 64))
        for start, stop in ((0, 1), (5, 6), (3, 8), (47, 64), (0, 32)):
            assert torch.equal(function(slice(start, stop)), together[start:stop])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block"), [(32, 8, 128, 16), (32, 8, 128, 64), (63, 21, 64, 64)])
def test_attention(heads: int, kv_heads: int, head_dim: int, block: int, device: torch.device) -> None:
    """Rows of a prefill chunk, of a verify pass and decoded one by one, alone and beside another sequence."""
    lengths, blocks = (700, 300), 1024 // block
    keys, values = torch.randn(2, 2 * blocks, kv_heads, block, head_dim, device=device).half()
    table = torch.randperm(2 * blocks, device=device).int().view(2, blocks)
    q = torch.randn(2, max(lengths), heads, head_dim, device=device).half()

    def rows(parts: list[tuple[int, int, int]]) -> list[Tensor]:
        """``parts``: (slot, first position, rows)."""
        positions = torch.cat([torch.arange(start, start + count) for _, start, count in parts]).int().to(device)
        slots = torch.cat([torch.full((count,), slot) for slot, _, count in parts]).int().to(device)
        tiles = plan_tiles([(slot, count) for slot, _, count in parts], heads // kv_heads, 128).to(device)
        queries = torch.cat([q[slot, start : start + count] for slot, start, count in parts])
        workspace = AttentionWorkspace.of(1024, len(queries), heads, head_dim, device)
        out = torch.full((len(queries), heads * head_dim), float("nan"), device=device)
        attend(queries, Context(keys, values, table), Rows(positions, slots, tiles), workspace, out)
        return list(out.split([count for _, _, count in parts]))

    whole = [rows([(slot, 0, length)])[0] for slot, length in enumerate(lengths)]
    assert not whole[0].isnan().any()
    for parts in (
        [(0, 0, 1)], [(0, 699, 1)], [(0, 255, 1)], [(0, 256, 5), (1, 17, 1)], [(1, 290, 5), (0, 400, 300)],
        [(0, 600, 33), (1, 0, 300)],
    ):  # fmt: skip
        for (slot, start, count), part in zip(parts, rows(parts), strict=True):
            assert torch.equal(part, whole[slot][start : start + count]), (slot, start, count)
