"""The benchmark's sections of whole steps on a tiny model: every cell has figures, a section that stopped goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import CellPlan, Grid, measure_cells
from benchmarks.gpu.decode_costs import acceptance_grid, cost_rows
from benchmarks.gpu.in_process import Pair
from benchmarks.gpu.library_linear import library_products
from benchmarks.gpu.pairs_section import measure_pairs
from benchmarks.gpu.plain_section import measure_plain_library
from benchmarks.gpu.report import report_lines
from benchmarks.gpu.results_file import ResultsFile, Section
from qspec.interfaces import Sampling
from qspec.kernels.triton.input_order import arrange
from qspec.quant.planes import merge_fp16
from qspec.sequence import Sequence as Text
from tests.engine_gpu.test_text_invariance import on_gpu


def short_sequences(
    pair: Pair, count: int, tokens: int, draft_length: int | None, sampling: Sampling, first: int = 0
) -> list[Text]:
    """Prompts of a token: the interpreter takes long over more."""
    return [Text(str(index), [5 + index], tokens, replace(sampling, choice=index), draft_length=draft_length)
            for index in range(first, first + count)]


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For every test here."""
    monkeypatch.setattr(Pair, "sequences", short_sequences)
    monkeypatch.setattr("benchmarks.gpu.decoding.SETTLING", 0)
    yield


@pytest.fixture
def run(model: Path, tmp_path: Path) -> BenchRun:
    return BenchRun(
        output=tmp_path, results=ResultsFile(tmp_path / "results.json"), model=str(model), tokens=1)


def plan(*grids: Grid) -> CellPlan:
    return CellPlan(factor=1, grids=grids, positions=128, warm_up=0, alone=2)


def section(run: BenchRun, name: str, seconds: float = 1e6) -> Section:
    return run.results.section(
        name, {}, deadline=time.monotonic() + seconds, tell=lambda line: None)


def test_a_section_measures_all_cells_and_goes_on_where_it_stopped(
    run: BenchRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = plan(Grid("coupled", 2, (0, 2)), Grid("greedy", 1, (0,)))
    stopped = section(run, "x7", -1.0)
    measure_cells(stopped, run, grids)
    stopped.finish()
    assert not stopped.cells and not run.results.complete("x7")
    assert stopped.record["left"] == [
        "coupled batch 2 k 0", "coupled batch 2 k 2", "coupled batch 2 k 0 again", "greedy batch 1 k 0"]
    done = section(run, "x7")
    measure_cells(done, run, grids)
    done.finish()
    assert run.results.complete("x7"), done.record
    assert ResultsFile(run.output / "results.json").sections == run.results.sections
    rows = list(cost_rows(done.cells))
    assert [(row["batch"], row["k"]) for row in rows] == [(2, 0), (2, 2), (2, 0), (1, 0)]
    for row in rows:
        assert row["rounds"] > 0 and row["tokens_per_s"] > 0 and len(row["rates"]) == (2 if row["batch"] == 1 else 1)
        assert row["mean_draft_length"] == row["k"]
        assert (row["alpha"] is None) == (row["k"] == 0) == (row["promised"] is None)
        assert row["accepted"] <= row["tried"] <= row["drafted"] == 2 * row["k"] * row["rounds"]
    assert list(acceptance_grid(rows)) == ["coupled batch 2 k 2"]
    lines = list(report_lines(run.results.sections))
    assert sum(line.startswith("| coupled | 2 | 2 |") for line in lines) == 1
    monkeypatch.setattr("benchmarks.gpu.decode_cells.verifying", None)  # whatever is complete is not loaded again
    measure_cells(section(run, "x7"), run, grids)


def test_a_failing_cell_costs_no_other(run: BenchRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def sequences(pair: Pair, count: int, tokens: int, draft_length: int | None, *rest: Any) -> list[Text]:
        texts = short_sequences(pair, count, tokens, draft_length, *rest)
        return [replace(text, max_tokens=1) for text in texts] if draft_length == 1 else texts

    monkeypatch.setattr(Pair, "sequences", sequences)
    found = section(run, "x7")
    measure_cells(found, run, plan(Grid("greedy", 1, (0, 1))))
    found.finish()
    assert list(found.cells) == ["greedy batch 1 k 0", "greedy batch 1 k 0 again"]
    assert "came to an end" in found.record["failed"]["greedy batch 1 k 1"]
    assert not run.results.complete("x7")
    assert any(line.startswith("FAILED x7, greedy batch 1 k 1") for line in report_lines(run.results.sections))


def test_pairs_are_held_against_their_own_plain_decoding_and_fp16s(run: BenchRun) -> None:
    found = section(run, "pairs-x7")
    measure_pairs(found, run, plan(Grid("greedy", 1, (0, 2))), {
        "none:fp16": (), "int8": ("unheard of", "fp8"), "unheard of": ("fp8",)})
    assert list(found.cells) == [
        "none:fp16: greedy batch 1 k 0", "int8: greedy batch 1 k 0", "fp8 → int8: greedy batch 1 k 2"]
    assert list(found.record["failed"]) == ["unheard of → int8", "unheard of"]
    lines = list(report_lines(run.results.sections))
    (row,) = [line for line in lines if line.startswith("| fp8 → int8 | 1 | 2 |")]
    assert row.count("–") == 0 and row.endswith(("gain |", "loss |"))


def merged(high: Tensor, low: Tensor, out: Tensor, *, rearrange: bool) -> None:
    """``merge_into``, which takes the interpreter long."""
    assert rearrange
    out.copy_(arrange(merge_fp16(high.contiguous(), low.contiguous())))


def test_plain_decoding_by_the_library_is_measured_and_right(
    run: BenchRun, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.library_linear.merge_into", merged)
    found = section(run, "plain-cublas-x7")
    measure_plain_library(found, run, plan(Grid("greedy", 1, (0,))))
    assert found.cells["greedy batch 1 k 0"]["tokens_per_s"] > 0
    with on_gpu(model, draft_quantization="off") as ours:
        expected = ours.verifier.cached_decoder(1).score([5, 250, 17], 3)
    with library_products() as made, on_gpu(model, draft_quantization="off") as theirs:
        assert made
        logits = theirs.verifier.cached_decoder(1).score([5, 250, 17], 3)
    assert 0 < (logits - expected).norm() / expected.norm() < 2e-3
