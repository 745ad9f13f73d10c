"""Products over integer weights at the shapes of models: right, and a row's bits depend on nothing beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qspec.kernels.triton.group_linear import TILES, GroupWeight, group_pieces, tile_for
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.int8_linear import TILES as INT8_TILES
from qspec.kernels.triton.int8_linear import int8_pieces
from qspec.kernels.triton.plane_linear import PlaneWeight, Tile, product_pieces
from qspec.kernels.triton.tuned import table_for
from qspec.quant.codecs import CODECS

GROUPED = ("int4-g64", "int8-nibbles-g64", "int8-g64")
ROWS = (1, 2, 5, 16, 17, 33, 64, 100, 256)


def _grouped(weights: str, outputs: int, inputs: int, device: torch.device) -> tuple[GroupWeight, Tensor]:
    parts = CODECS[weights].encode(torch.randn(outputs, inputs, device=device), "weight")
    codes = parts["codes"] if "codes" in parts else parts["high"]
    weight = GroupWeight(codes, parts.get("low"), parts["scales"], inputs // parts["scales"].shape[1])
    return weight, CODECS[weights].decode(parts).double()


def _pieces(x: Tensor, weight: GroupWeight, split: int, tile: Tile) -> Tensor:
    pieces = torch.full((split, x.shape[0], weight.shape[0]), float("nan"), device=x.device)
    group_pieces(x, weight, split, tile, pieces)
    return pieces


@pytest.mark.parametrize("weights", GROUPED)
@pytest.mark.parametrize(("outputs", "inputs", "split"), [(6144, 4096, 4), (4032, 10752, 4), (21504, 4032, 1)])
def test_groups(weights: str, outputs: int, inputs: int, split: int, device: torch.device) -> None:
    weight, exact = _grouped(weights, outputs, inputs, device)
    for rows in (1, 40):
        x = torch.randn(rows, inputs, device=device).half()
        found = _pieces(arrange(x), weight, split, tile_for(rows)).sum(0).double()
        expected = x.double() @ exact.t()
        assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("weights", GROUPED)
@pytest.mark.parametrize(("outputs", "inputs", "split"), [(1024, 4096, 4), (528, 4032, 3), (2064, 1024, 1)])
def test_groups_are_row_invariant(weights: str, outputs: int, inputs: int, split: int, device: torch.device) -> None:
    weight, _ = _grouped(weights, outputs, inputs, device)
    x = arrange(torch.randn(256, inputs, device=device).half())
    alone = torch.cat([_pieces(x[row : row + 1], weight, split, tile_for(1)) for row in range(256)], 1)
    for tile in (*TILES.values(), Tile(rows=16, outputs=128, inputs=256, warps=8, stages=2)):
        for rows in ROWS:
            for start in {0, 256 - rows, (256 - rows) // 2}:
                together = _pieces(x[start : start + rows].contiguous(), weight, split, tile)
                assert torch.equal(together, alone[:, start : start + rows]), (tile, rows, start)


@pytest.mark.parametrize(("outputs", "inputs", "split"), [(1024, 4096, 4), (528, 4032, 3)])
def test_int8_rows_are_right_and_row_invariant(outputs: int, inputs: int, split: int, device: torch.device) -> None:
    codes = torch.randint(-127, 128, (outputs, inputs), device=device).to(torch.int8)
    weight = PlaneWeight(codes, None, torch.ones(outputs, device=device))
    natural = torch.randn(256, inputs, device=device).half()
    x = arrange(natural)

    def pieces(rows: Tensor, tile: Tile) -> Tensor:
        out = torch.full((split, rows.shape[0], outputs), float("nan"), device=device)
        product_pieces(rows, weight, split, tile, out)
        return out

    tiles = {tile for entry in table_for((9, 0)).linears for tile in entry.high.tiles.values()}
    alone = torch.cat([pieces(x[row : row + 1], Tile(rows=16)) for row in range(256)], 1)
    expected = natural.double() @ codes.double().t()
    assert (alone.sum(0).double() - expected).norm() / expected.norm() < 1e-5
    for tile in tiles:
        for rows in ROWS:
            assert torch.equal(pieces(x[256 - rows :].contiguous(), tile), alone[:, 256 - rows :]), (tile, rows)


@pytest.mark.parametrize("rows", [1, 16, 33, 200])
def test_int8_by_int8_is_exact(rows: int, device: torch.device) -> None:
    codes = torch.randint(-127, 128, (4032, 4096), device=device).to(torch.int8)[:, :4032]
    x = torch.randint(-127, 128, (rows, 4032), device=device).to(torch.int8)
    expected = (x.double() @ codes.double().t()).float()
    for tile in INT8_TILES.values():
        pieces = torch.full((2, rows, 4032), float("nan"), device=device)
        int8_pieces(x, codes, 2, tile, pieces)
        assert (pieces.sum(0) - expected).abs().max() <= 4  # fp32 of sums beyond 2²⁴
