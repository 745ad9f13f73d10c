"""Row tiles: rows are covered once, the probe sees through a library that changes its bits, products are invariant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec.engine.linears import TiledLinear
from qspec.kernels import reference
from qspec.kernels.row_tiles import ANCHOR_ROWS, CANDIDATE_ROWS, RowTiles, probe_row_tiles, tiled_product

SHAPES = [(64, 96), (576, 192), (37, 53), (130, 1000), (1, 1), (257, 3)]
ROWS = 40


@settings(max_examples=300, deadline=None, derandomize=True)
@given(sizes=st.sets(st.integers(1, 70), min_size=1, max_size=8), rows=st.integers(1, 300))
def test_a_plan_covers_every_row_once_and_uses_known_tiles_only(sizes: set[int], rows: int) -> None:
    tiles = RowTiles(tuple(sorted(sizes)))
    end = 0
    for start, stop, size in tiles.plan(rows):
        assert start == end
        assert size in sizes
        assert 0 < stop - start <= size
        end = stop
    assert end == rows
    *all_but_last, last = tiles.plan(rows)
    assert all(stop - start == size for start, stop, size in all_but_last), "only the last tile is padded"
    padded = tiles.padded(rows)
    assert padded == (last[2] if not all_but_last else rows)


class FickleLibrary:
    """A product whose bits depend on the number of rows, as a BLAS that changes its inner loop has them."""

    def __init__(self, classes: dict[int, float], last_row: float = 0.0) -> None:
        self._classes, self._last_row = classes, last_row

    def __call__(self, x: Tensor) -> Tensor:
        y = x.double() @ torch.ones(x.shape[1], 3, dtype=torch.float64)
        y = y + max((shift, bound) for bound, shift in self._classes.items() if x.shape[0] >= bound)[0]
        if x.shape[0] > 1:
            y[-1] += self._last_row
        return y


def test_the_probe_finds_the_class_of_the_anchor() -> None:
    product = FickleLibrary({1: 0.0, 2: 1.0, 4: 2.0, 10: 3.0})
    assert probe_row_tiles(product, torch.randn(5), CANDIDATE_ROWS).sizes == (4, 5, 6, 7, 8, 9)


def test_the_probe_uses_everything_where_nothing_changes() -> None:
    assert probe_row_tiles(FickleLibrary({1: 0.0}), torch.randn(5), (1, 2, 7, 64)).sizes == (1, 2, ANCHOR_ROWS, 7, 64)


def test_the_probe_falls_to_single_rows_where_the_rows_of_a_tile_differ() -> None:
    assert probe_row_tiles(FickleLibrary({1: 0.0}, last_row=1e-9), torch.randn(5), CANDIDATE_ROWS).sizes == (1,)


def test_tiles_hide_what_the_library_does() -> None:
    product = FickleLibrary({1: 0.0, 2: 1.0, 4: 2.0, 10: 3.0})
    tiles = probe_row_tiles(product, torch.randn(5), CANDIDATE_ROWS)
    x = torch.randn(23, 5, generator=torch.Generator().manual_seed(0)).double()
    for rows in range(1, 24):
        torch.testing.assert_close(tiled_product(product, x[:rows], tiles)[:, 0], x[:rows].sum(-1) + 2.0)


def tiled_linear(inputs: int, outputs: int) -> tuple[TiledLinear, Tensor, Tensor]:
    """A probed linear layer with its weight and bias."""
    generator = torch.Generator().manual_seed(inputs)
    weight, bias = torch.randn(inputs, outputs, generator=generator), torch.randn(outputs, generator=generator)
    tiles = probe_row_tiles(weight.__rmatmul__, torch.randn(inputs, generator=generator), CANDIDATE_ROWS)
    return TiledLinear(weight, bias, tiles), weight, bias


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_a_linear_row_has_the_same_bits_among_any_rows(inputs: int, outputs: int, threads: int) -> None:
    linear, weight, bias = tiled_linear(inputs, outputs)
    x = torch.randn(ROWS, inputs, generator=torch.Generator().manual_seed(7))
    together = linear(x)
    torch.testing.assert_close(together.double(), reference.linear(x, weight, bias), rtol=0, atol=2e-5 * inputs**0.5)
    for rows in range(1, ROWS + 1):
        assert torch.equal(linear(x[:rows].clone()), together[:rows])
        assert torch.equal(linear(x[ROWS - rows :]), together[ROWS - rows :]), "a view into a larger batch"
    for row in range(ROWS):
        assert torch.equal(linear(x[row : row + 1]), together[row : row + 1])
    assert torch.equal(linear(x.t().contiguous().t()), together), "rows that do not lie one after the other"


def test_many_rows_are_cut_up(threads: int) -> None:
    linear, _, _ = tiled_linear(64, 96)
    x = torch.randn(700, 64, generator=torch.Generator().manual_seed(7))
    together = linear(x)
    for start, stop in ((0, 1), (0, 600), (511, 513), (650, 700), (3, 290)):
        assert torch.equal(linear(x[start:stop].clone()), together[start:stop])
