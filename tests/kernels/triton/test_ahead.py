"""Spare programs ask for the lines that a product reads first, and change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from qspec.kernels.triton.ahead import Ahead, line_offset
from qspec.kernels.triton.attention import AttentionWorkspace, Context, Rows, attend, plan_tiles
from qspec.kernels.triton.elementwise import Pieces, empty_activations, rms_norm, silu_times_up
from qspec.kernels.triton.plane_linear import PlaneWeight, row_stride

OUTPUTS, INPUTS = 96, 1088


@triton.jit
def _offsets_kernel(out, count, rows, stride, chunk, LINES: tl.constexpr, COUNT: tl.constexpr):  # noqa: N803
    index = tl.arange(0, COUNT)
    tl.store(out + index, line_offset(index, rows, stride, chunk, LINES), mask=index < count)


@pytest.fixture
def weight(device: torch.device) -> PlaneWeight:
    planes = torch.zeros(2, OUTPUTS, row_stride(INPUTS), dtype=torch.uint8, device=device)
    return PlaneWeight(planes[0, :, :INPUTS], planes[1, :, :INPUTS], torch.ones(OUTPUTS, device=device))


def test_the_first_lines_of_each_piece_are_asked_for(weight: PlaneWeight, device: torch.device) -> None:
    ahead = Ahead.of(weight, 3, 2 * 128 * 3 * 2 * OUTPUTS)
    assert ahead is not None
    assert (ahead.rows, ahead.pieces, ahead.lines, ahead.constants()["PLANES"]) == (OUTPUTS, 3, 2, 2)
    count = ahead.rows * ahead.pieces * ahead.lines
    out = torch.full((1024,), -1, dtype=torch.int64, device=device)
    stride = weight.high.stride(0)
    _offsets_kernel[(1,)](out, count, ahead.rows, stride, ahead.chunk, LINES=ahead.lines, COUNT=1024)
    expected = {row * stride + piece * ahead.chunk + 128 * line
                for row in range(OUTPUTS) for piece in range(3) for line in range(2)}
    assert set(out[:count].tolist()) == expected
    assert max(expected) < weight.high.shape[0] * stride


def test_no_more_than_the_budget_or_the_row() -> None:
    weight = PlaneWeight(torch.zeros(64, 256, dtype=torch.uint8), None, torch.ones(64))
    assert Ahead.of(weight, 1, 64 * 128 - 1) is None
    all_of_it = Ahead.of(weight, 1, 1 << 30)
    assert all_of_it is not None and all_of_it.lines == 2
    wide = PlaneWeight(torch.zeros(40000, 128, dtype=torch.uint8), None, torch.ones(40000))
    first_programs = Ahead.of(wide, 1, 1 << 30)
    assert first_programs is not None and first_programs.rows == 16384


def test_results_are_the_same_bits(weight: PlaneWeight, device: torch.device, source: torch.Generator) -> None:
    ahead = Ahead.of(weight, 3, 1 << 20)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(device)

    added, gain, residual = Pieces(random(2, 3, 128), random(128)), random(128), random(3, 128)
    gate_up = Pieces(random(2, 3, 256), random(256))
    queries, cache = random(3, 4, 32).half(), random(2, 4, 2, 16, 32).half()
    rows = Rows(
        torch.tensor([20, 21, 22]).int().to(device), torch.zeros(3).int().to(device),
        plan_tiles([(0, 3)], 2, 2).to(device))
    found = []
    for asked in (None, ahead):
        after, normed = residual.clone(), empty_activations(3, 128, device, quantised=False)
        rms_norm(after, added, gain, 1e-5, normed, asked)
        middle = empty_activations(3, 128, device, quantised=False)
        silu_times_up(gate_up, middle, asked)
        attended = torch.empty(3, 128, dtype=torch.float16, device=device)
        attend(
            queries, Context(*cache, torch.tensor([[2, 1, 3]]).int().to(device)), rows,
            AttentionWorkspace.of(256, 3, 4, 32, device), attended, pieces=1, ahead=asked)
        found.append((after, normed.values, middle.values, attended))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
