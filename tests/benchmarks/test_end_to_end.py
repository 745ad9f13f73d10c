"""The benchmark as ``make bench`` starts it, on a tiny model, transformers included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from tests.tiny_models import write_tiny_model


def run_benchmark(*options: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """One run as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end", *options], cwd=ROOT, capture_output=True, text=True,
        timeout=170, check=False, env={**os.environ, "QSPEC_CACHE_DIR": str(cache)},
    )


def test_a_whole_run(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", "smollm2", seed=3)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"turns": ["the quick brown fox"]}\n{"turns": ["' + "ab " * 60 + '"]}\n', "utf-8")
    output = tmp_path / "result.json"
    run = run_benchmark(
        f"--model={tmp_path / 'model'}", f"--prompts={prompts}", "--prompt-tokens=40", "--max-tokens=12",
        "--threads=1", "--starts=1", f"--output={output}", cache=tmp_path / "cache",
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result == json.loads(output.read_text("utf-8"))
    assert not any(result["differing_prompts"].values())
    assert result["settings"]["prompt_lengths"][1] == 40
    assert result["transformers"]["prompts"] == 2
    assert {process["program"] for process in result["memory"]["processes"]} == {"coordinator", "verifier", "drafter"}
    assert result["configurations"]["k = 4"]["drafted"] > 0
    assert result["configurations"]["plain"]["drafted"] == 0
    assert "the same tokens in every configuration: 0 of 2 prompts differ" in run.stdout


@pytest.mark.parametrize(
    ("option", "named"),
    [("--num-prompts=0", "--num-prompts"), ("--max-tokens=1", "--max-tokens"), ("--prompts=/nowhere", "--prompts"),
     ("--output=/nowhere/x.json", "--output")],
)
def test_what_cannot_be_measured_is_refused_at_once(option: str, named: str, tmp_path: Path) -> None:
    run = run_benchmark(option, cache=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"error: {named}")
    assert len(run.stderr.splitlines()) == 1
