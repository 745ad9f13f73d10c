"""The benchmark as ``make bench`` starts it, on a tiny model, transformers and a stand-in for llama.cpp included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from tests.benchmarks.fake_llama_cpp import write_fake_llama_cpp
from tests.models.tiny_gguf import write_tiny_gguf
from tests.tiny_models import write_tiny_model


def run_benchmark(*options: str, cache: Path, packages: str = "") -> subprocess.CompletedProcess[str]:
    """One run as a user types it, with ``packages`` before the installed ones."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end", *options], cwd=ROOT, capture_output=True, text=True,
        timeout=170, check=False, env={**os.environ, "QSPEC_CACHE_DIR": str(cache), "PYTHONPATH": packages},
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
    assert result["llama_cpp"] is None
    assert "not measured: auto past llama.cpp F16" in run.stdout


def test_a_whole_run_with_llama_cpp(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "llama")
    write_fake_llama_cpp(tmp_path / "packages")
    run = run_benchmark(
        f"--model={tmp_path / 'model.gguf'}", "--llama-cpp", "--skip-transformers", "--num-prompts=1",
        "--prompt-tokens=40", "--max-tokens=8", "--threads=1", "--starts=1", cache=tmp_path / "cache",
        packages=str(tmp_path / "packages"),
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["llama_cpp"].keys() == {"version", "system", "stack_memory", "encodings"}
    assert result["llama_cpp"]["encodings"].keys() == {"F16", "Q8_0"}
    assert result["configurations"].keys() >= {"auto", "llama.cpp F16", "llama.cpp Q8_0"}
    assert "auto past llama.cpp Q8_0: 0." in run.stdout
    assert "F16: memory of the stack against its: PSS" in run.stdout


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
