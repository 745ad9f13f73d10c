"""transformers' generate and assisted generation on a widened tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import transformers_decode
from benchmarks.gpu.bench_run import BenchRun
from benchmarks.gpu.results_file import ResultsFile
from benchmarks.gpu.transformers_decode import measure_transformers
from tests.tiny_models import write_tiny_model


def test_rates_of_batches_and_of_assisted_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers_decode, "benchmark_prompts", lambda: ["a", "the quick", "fox", "b"])
    monkeypatch.setattr(transformers_decode, "BATCHES", (1, 3))
    write_tiny_model(tmp_path / "model", "smollm2", seed=3)
    results = ResultsFile(tmp_path / "results.json")
    run = BenchRun(output=tmp_path, results=results, model=str(tmp_path / "model"), device=torch.device("cpu"))
    section = results.section("transformers-x2", {}, deadline=1e18, tell=lambda line: None)
    measure_transformers(section, run, 2, tokens=16, repeats=2)
    assert not section.record["failed"]
    assert list(section.cells) == ["batch 1", "batch 3", "assisted, batch 1"]
    assert all(found["tokens_per_s"] > 0 and len(found["all"]) == 2 for found in section.cells.values())
