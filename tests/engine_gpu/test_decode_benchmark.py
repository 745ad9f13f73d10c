"""``benchmarks.gpu.decode`` on a tiny model: every cell has figures, an interrupted section goes on, tables print."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import decode_cells
from benchmarks.gpu.decode_cells import measure_cells
from benchmarks.gpu.decode_table import rows_of, table_lines
from benchmarks.gpu.in_process import Pair
from benchmarks.gpu.round_profile import spans_by_kind
from benchmarks.gpu.section_file import SectionFile
from qspec.interfaces import Sampling
from qspec.sequence import Sequence as Text


def silent(_text: str, _share: float | None) -> None:
    """Nobody watches."""


def short_sequences(pair: Pair, count: int, tokens: int, draft_length: int | None, sampling: Sampling) -> list[Text]:
    """Prompts of a token: the interpreter takes long over more."""
    return [Text(str(index), [5 + index], tokens, replace(sampling, choice=index), draft_length=draft_length)
            for index in range(count)]


def cells(path: Path, seconds: float, model: Path) -> dict[str, Any]:
    file = SectionFile(path, time.perf_counter() + seconds)
    measure_cells(
        file, model=str(model), factor=1, draft="fp8:plane", verify="none", batches=(2,), lengths=(0, 2),
        temperatures=(1.0,), tokens=1, tell=silent, profiled=(), positions=128, warm_up=1)
    return file.record


def test_a_section_measures_all_cells_and_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pair, "sequences", short_sequences)
    stopped = cells(tmp_path / "decode-x1.json", 0.0, model)
    assert set(stopped) == {"about"}
    done = cells(tmp_path / "decode-x1.json", 1e6, model)
    assert json.loads((tmp_path / "decode-x1.json").read_text("utf-8")) == done
    found = list(rows_of(done))
    assert [(row["batch"], row["k"]) for row in found] == [(2, 0), (2, 2), (2, 0)]
    for row in found:
        assert row["rounds"] > 0 and row["tokens_per_s"] > 0
        assert row["mean_draft_length"] == row["k"]
        assert (row["acceptance"] is None) == (row["k"] == 0)
    assert done["about"]["memory"]["arena_over_fp16"] > 1.0, "tails, at least"
    lines = list(table_lines({"x1": done}))
    assert sum(line.startswith("| 2 | 1 | 2 |") for line in lines) == 1
    monkeypatch.setattr(decode_cells, "pair_over", None)  # whatever is complete is not loaded again
    assert cells(tmp_path / "decode-x1.json", 1e6, model) == done


def test_overlapping_kernels_are_busy_once() -> None:
    spans = [("plane_product", 0.0, 10.0), ("_attend", 8.0, 14.0), ("strange", 20.0, 24.0)]
    found = spans_by_kind(spans, 2, 30e-6)
    assert found["kernels_us"]["weights"] == 5.0 and found["kernels_us"]["other"] == 2.0
    assert (found["busy_us"], found["nothing_runs_us"], found["round_us"]) == (9.0, 6.0, 15.0)
