"""The section of whole stacks, with real processes over a widened tiny model on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import stack_section
from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.decode_cells import AUTO
from benchmarks.gpu.report import report_lines
from benchmarks.gpu.results_file import ResultsFile
from benchmarks.gpu.stack_section import StackPlan, measure_stack
from tests.tiny_models import write_tiny_model


def test_a_widened_stack_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(stack_section, "benchmark_prompts", lambda: ["the quick", "brown fox"])
    write_tiny_model(tmp_path / "model", "smollm2", seed=3)
    results = ResultsFile(tmp_path / "results.json")
    run = BenchRun(output=tmp_path, results=results, model=str(tmp_path / "model"), draft="fp8", verify="none")
    plan = StackPlan(
        factor=2, rounds=((1, 2),), compared=(2,), repeats=2, tokens=48, positions=128, conditions=("MPS",))
    section = results.section("stack-x2", {}, deadline=1e18, tell=lambda line: None)
    measure_stack(section, run, plan, device="cpu")
    section.finish()
    assert section.record["complete"], section.record
    rounds, compared, memory = section.cells.values()
    parts = ("workers", "rpc", "scheduling", "between")
    assert sum(rounds["seconds"][part] for part in parts) == pytest.approx(rounds["seconds"]["wall"], rel=0.2)
    assert 0 < rounds["accepted_share"] <= 1
    assert len(compared["ratios"]) == len(compared["ratios_to_the_end"]) == 2
    assert all(rate > 0 for rate in compared["tokens_per_s"][AUTO])
    assert {line["owner"] for line in memory["lines"]} >= {"arena", "drafter"}
    lines = list(report_lines(results.sections))
    assert any("listed" in line for line in lines) and any("to the last text's end" in line for line in lines)
