from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from qspec.errors import InvalidInput
from qspec.kernels import reference
from qspec.kernels.triton.input_order import arrange
from qspec.kernels.triton.plane_linear import (
    PlaneWeight,
    Tile,
    Workspace,
    piece_length,
    product,
    product_pieces,
    row_stride,
)
from qspec.kernels.triton.planes import merge_into
from qspec.quant.planes import HIGH_SCALE, split_fp16
from tests.kernels.triton.weights import assert_same_row, random_planes

TILES = (Tile(rows=16, inputs=64), Tile(rows=32, inputs=128), Tile(rows=64, outputs=128, inputs=64, warps=8))


def _relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double().cpu() - expected).norm() / expected.norm())


def test_merging_gives_back_every_fp16_value(device: torch.device) -> None:
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = words[words.abs() <= 1.75].sort().values  # every value that can be split, both zeros and subnormals
    values = torch.cat([values, torch.zeros(-len(values) % 64, dtype=torch.float16)]).view(-1, 64)
    high, low = split_fp16(values, "values")
    merged = torch.empty(values.shape, dtype=torch.float16, device=device)
    merge_into(high.to(device), low.to(device), merged, rearrange=False)
    assert torch.equal(merged.cpu().view(torch.int16), values.view(torch.int16))
    merge_into(high.to(device), low.to(device), merged, rearrange=True)
    assert torch.equal(merged.cpu().view(torch.int16), arrange(values).view(torch.int16))


def test_the_input_order_is_a_permutation_within_64(device: torch.device) -> None:
    numbers = torch.arange(256)[None, :]
    order = arrange(numbers)[0]
    assert torch.equal(order.sort().values, numbers[0])
    assert torch.equal(order // 64, numbers[0] // 64)
    # The first instruction's inputs: the first four of each thread's 16 adjacent ones, in pairs 8 apart.
    assert order[:16].tolist() == [0, 1, 16, 17, 32, 33, 48, 49, 2, 3, 18, 19, 34, 35, 50, 51]


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.outputs}x{tile.inputs}")
@pytest.mark.parametrize(("rows", "outputs", "inputs", "split"), [(1, 64, 128, 1), (5, 80, 192, 2), (40, 144, 448, 3)])
def test_both_planes(
    tile: Tile, rows: int, outputs: int, inputs: int, split: int, device: torch.device, source: torch.Generator
) -> None:
    weight, exact = random_planes(outputs, inputs, source, device)
    x = torch.randn(rows, inputs, generator=source).half()
    expected = x.double() @ exact.t()
    workspace = Workspace.of(split * rows * outputs, 64, device)
    out = torch.full((rows, outputs), float("nan"), device=device)
    for _ in range(2):  # the second product finds the counters as the first one left them
        product(arrange(x).to(device), weight, split, tile, out, workspace)
        assert _relative_error(out, expected) < 1e-5
    pieces = torch.full((split, rows, outputs), float("nan"), device=device)
    product_pieces(arrange(x).to(device), weight, split, tile, pieces)
    assert _relative_error(pieces.sum(0) * weight.scales, expected) < 1e-5


def test_the_high_plane_alone(device: torch.device, source: torch.Generator) -> None:
    weight, _ = random_planes(80, 192, source, device)
    x = torch.randn(3, 192, generator=source).half()
    high = weight.high.view(torch.float8_e4m3fn).cpu().float()
    expected = reference.linear_fp8_plane(x, high, weight.scales.cpu()[:, None], None)
    out = torch.full((3, 80), float("nan"), device=device)
    product(
        arrange(x).to(device), PlaneWeight(weight.high, None, weight.scales), 2, TILES[0], out,
        Workspace.of(2 * 3 * 80, 8, device))
    assert _relative_error(out, expected) < 1e-5
    assert HIGH_SCALE == 2.0**-8  # what a shift of bits gives


def test_merged_weights(device: torch.device, source: torch.Generator) -> None:
    weight, exact = random_planes(128, 320, source, device)
    scratch = torch.empty(128, 320, dtype=torch.float16, device=device)
    merge_into(weight.high, weight.low, scratch, rearrange=True)
    x = torch.randn(70, 320, generator=source).half()
    out = torch.empty(70, 128, device=device)
    merged = PlaneWeight(scratch, None, weight.scales)
    product(arrange(x).to(device), merged, 2, TILES[2], out, Workspace.of(2 * 70 * 128, 64, device))
    assert _relative_error(out, x.double() @ exact.t()) < 1e-5


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.outputs}x{tile.inputs}")
def test_a_row_does_not_see_its_neighbours(tile: Tile, device: torch.device, source: torch.Generator) -> None:
    weight, exact = random_planes(80, 192, source, device)
    x = torch.full((35, 192), float("nan")).half()
    x[[0, 17, 34]] = torch.randn(192, generator=source).half()
    out = torch.empty(35, 80, device=device)
    product(arrange(x).to(device), weight, 2, tile, out, Workspace.of(2 * 35 * 80, 64, device))
    assert_same_row(out[0], out[17])
    assert_same_row(out[0], out[34])
    assert _relative_error(out[:1], x[:1].double() @ exact.t()) < 1e-5


def test_rows_may_lie_apart(device: torch.device, source: torch.Generator) -> None:
    weight, _ = random_planes(80, 192, source, device)
    assert weight.low is not None
    assert [row_stride(inputs) for inputs in (64, 128, 192, 4032)] == [128, 128, 256, 4096]

    def apart(plane: torch.Tensor) -> torch.Tensor:
        wide = torch.full((80, row_stride(192)), 0x7F, dtype=torch.uint8, device=device)  # NaN, where it is read
        wide[:, :192] = plane
        return wide[:, :192]

    padded = PlaneWeight(apart(weight.high), apart(weight.low), weight.scales)
    x = arrange(torch.randn(3, 192, generator=source).half()).to(device)
    for adjacent, wide in ((weight, padded), (replace(weight, low=None), replace(padded, low=None))):
        expected, pieces = torch.full((2, 2, 3, 80), float("nan"), device=device)
        product_pieces(x, adjacent, 2, TILES[1], expected)
        product_pieces(x, wide, 2, TILES[1], pieces)
        assert torch.equal(pieces, expected)
    merged, expected = torch.empty(2, 80, 192, dtype=torch.float16, device=device)
    assert padded.low is not None
    merge_into(padded.high, padded.low, merged, rearrange=True)
    merge_into(weight.high, weight.low, expected, rearrange=True)
    assert torch.equal(merged, expected)
    with pytest.raises(InvalidInput, match="lie alike in both planes"):
        PlaneWeight(padded.high, weight.low, weight.scales)


def test_pieces_are_whole_groups() -> None:
    assert piece_length(4032, 4) == 1024
    assert [piece_length(448, split) for split in (1, 2, 3, 7)] == [448, 256, 192, 64]


def test_what_no_kernel_takes_is_refused(device: torch.device) -> None:
    planes = torch.zeros(64, 96, dtype=torch.uint8, device=device)
    with pytest.raises(InvalidInput, match="multiple of 64"):
        PlaneWeight(planes, planes, torch.ones(64, device=device))
    weight = PlaneWeight(planes[:, :64].contiguous(), None, torch.ones(64, device=device))
    x = torch.zeros(1, 64, dtype=torch.float16, device=device)
    with pytest.raises(InvalidInput, match="one would be empty"):
        product_pieces(x, weight, 2, TILES[0], torch.empty(2, 1, 64, device=device))
