from __future__ import annotations

import logging

import pytest

pytest.importorskip("triton")

from qspec.errors import InvalidInput
from qspec.kernels.triton.device_limits import HOPPER, DeviceLimits
from qspec.kernels.triton.plane_linear import Tile, Weights, piece_length
from qspec.kernels.triton.tuned import Cut, LinearTuning, TunedTable, table_for

_WHOLE = Cut(split=1, tiles={16: Tile(rows=16)})
_TABLE = TunedTable("test", None, (
    LinearTuning(
        outputs=4096, inputs=4096, both=Cut(split=4, tiles={16: Tile(rows=16), 256: Tile(rows=128, stages=3)}),
        high=Cut(split=2, tiles={16: Tile(rows=16, stages=6)})),
    LinearTuning(outputs=28672, inputs=4096, both=_WHOLE, high=_WHOLE),
))  # fmt: skip


def test_the_split_is_one_for_all_rows_and_the_tile_is_not() -> None:
    entry = _TABLE.linear(4096, 4096)
    assert [entry.both.tile(rows).rows for rows in (1, 16, 17, 256, 1000)] == [16, 16, 128, 128, 128]
    assert isinstance(entry.both.split, int)


def test_merged_weights_have_the_bits_of_both_planes_and_drafts_their_own() -> None:
    entry = _TABLE.linear(4096, 4096)
    assert [entry.cut(weights).split for weights in (Weights.BOTH, Weights.MERGED, Weights.HIGH, Weights.INT8)] == [
        4, 4, 2, 2]


def test_the_nearest_entry_is_used_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            entry = _TABLE.linear(6144, 128)
    assert (entry.outputs, entry.inputs, entry.both.split) == (6144, 128, 2)  # of two groups at most
    assert [record.message for record in caplog.records] == [
        "no tuned kernel for weights of 6144×128 on test: using the entry of 4096×4096"
    ]


def test_a_table_survives_its_file() -> None:
    assert TunedTable.parse(_TABLE.to_json()) == _TABLE


def test_tiles_shrink_to_what_a_gpu_has_room_for_and_the_split_does_not() -> None:
    table = table_for((9, 0))
    assert table.within(HOPPER) == table
    for limits in (DeviceLimits((8, 9), 101376), DeviceLimits((9, 0), 101376), DeviceLimits((8, 0), 50000)):
        for entry, small in zip(table.linears, table.within(limits).linears, strict=True):
            for cut, fitting, planes in ((entry.both, small.both, 2), (entry.high, small.high, 1)):
                assert (cut.split, list(cut.tiles)) == (fitting.split, list(fitting.tiles))
                for tile, less in zip(cut.tiles.values(), fitting.tiles.values(), strict=True):
                    assert 2 <= less.stages <= tile.stages and 16 <= less.rows <= tile.rows
                    buffers = less.stages - (limits.capability[0] == 8)
                    assert buffers * less.inputs * (less.outputs * planes + 2 * less.rows) < limits.shared_bytes


@pytest.mark.parametrize("capability", [(9, 0), (12, 1)])
def test_the_checked_in_table(capability: tuple[int, int]) -> None:
    table = table_for(capability)
    assert table.generation == "hopper"
    for entry in table.linears:
        for cut in (entry.both, entry.high):
            assert piece_length(entry.inputs, cut.split) * (cut.split - 1) < entry.inputs
            for tile in cut.tiles.values():
                assert tile.rows >= 16  # fewer would take another matrix instruction, with other bits
                assert tile.outputs % 64 == 0
                assert tile.warps in {4, 8}
                assert tile.warps == 4 or tile.outputs >= 128


def test_bad_entries_are_refused() -> None:
    with pytest.raises(InvalidInput, match="one would be empty"):
        LinearTuning(outputs=64, inputs=128, both=_WHOLE, high=Cut(split=3, tiles=_WHOLE.tiles))
    with pytest.raises(InvalidInput, match="ascending"):
        Cut(split=1, tiles={32: Tile(rows=32), 16: Tile(rows=16)})
    with pytest.raises(InvalidInput, match="multiples of 64"):
        _TABLE.linear(64, 100)
