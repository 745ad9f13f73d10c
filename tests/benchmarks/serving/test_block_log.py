"""Blocks on disk: kept, gone on from, never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving.block_log import BlockKey, BlockLog
from qspec.errors import InvalidInput
from tests.benchmarks.serving.streams import block, even_stream

SETTINGS = {"model": "tiny", "seed": 1, "configurations": ["auto"]}
KEY = BlockKey(0.5, 2, "auto")


def test_a_run_goes_on_where_another_was(tmp_path: Path) -> None:
    path = tmp_path / "log"
    load = block([even_stream(3), even_stream(2, start=0.5)])
    BlockLog(path, SETTINGS).add(KEY, load)
    again = BlockLog(path, SETTINGS)
    assert again.blocks == {KEY: load}
    again.add(BlockKey(0.5, 3, "auto"), load)
    assert list(BlockLog(path, SETTINGS).blocks) == [KEY, BlockKey(0.5, 3, "auto")]


def test_a_block_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = BlockLog(path, SETTINGS)
    log.add(KEY, block([even_stream(3)]))
    log.add(BlockKey(0.5, 3, "auto"), block([even_stream(3)]))
    path.write_bytes(path.read_bytes()[:-20])
    again = BlockLog(path, SETTINGS)
    assert list(again.blocks) == [KEY]
    again.add(BlockKey(0.5, 3, "auto"), block([even_stream(3)]))
    assert len(BlockLog(path, SETTINGS).blocks) == 2


def test_blocks_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "log"
    BlockLog(path, SETTINGS).add(KEY, block([even_stream(3)]))
    with pytest.raises(InvalidInput, match=r"other settings \(seed\)"):
        BlockLog(path, {**SETTINGS, "seed": 2})
    assert BlockLog(path, SETTINGS).blocks.keys() == {KEY}


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("dear diary\n", "utf-8")
    with pytest.raises(InvalidInput, match="no log of this benchmark"):
        BlockLog(path, SETTINGS)
    assert path.read_text("utf-8") == "dear diary\n"
