"""``python -m benchmarks.serving`` as it is typed, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from benchmarks.serving.options import check_options, parser, stack_for
from qspec.config import StackConfig
from qspec.errors import InvalidInput
from tests.tiny_models import write_tiny_model


def run_benchmark(*options: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """One run as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.serving", *options], cwd=ROOT, capture_output=True, text=True, timeout=170,
        check=False, env={**os.environ, "QSPEC_CACHE_DIR": str(cache)},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the runs of this module share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(path, "smollm2", seed=3)
    return path


def test_load_and_streams(tmp_path: Path, cache: Path, model: Path) -> None:
    secret = tmp_path / "a-directory-that-is-nobodys-business"
    secret.mkdir()
    (secret / "prompts.jsonl").write_text('{"prompt": "the quick brown fox"}\n{"prompt": "ab ab ab"}\n', "utf-8")
    options = [
        f"--model={model}", f"--prompts={secret / 'prompts.jsonl'}", "--threads=1", "--max-tokens=8",
        "--prompt-tokens=40", "--burst=3", "--loads", "0.5", "2", "--blocks=2", "--block-seconds=0.2",
        "--draft-length=2", "--draft-quantization=w8a8", "--verify-quantization=none", f"--log={tmp_path / 'log'}"]
    plot, output = tmp_path / "plot.png", tmp_path / "result.json"
    run = run_benchmark(
        "--sections", "load", "streams", "batches", "--streams=20", "--stream-tokens=12", "--stream-prompt-tokens=30",
        "--stream-slots=20", "--batch-sizes", "1", "3", "--batch-blocks=1", "--batch-tokens=12",
        f"--plot={plot}", f"--output={output}", *options, cache=cache)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result == json.loads(output.read_text("utf-8"))
    assert secret.name not in run.stdout and result["load"]["settings"]["prompts"] == "prompts.jsonl"
    load = result["load"]
    assert load["complete"] and load["differing_texts"] == 0
    assert {(point["load"], point["configuration"]) for point in load["points"]} == {
        (share, name) for share in (0.5, 2) for name in ("auto", "k = 2", "k = 0")}
    drafted = {name: sum(one["drafted"] for one in load["points"] if one["configuration"] == name)
               for name in ("k = 2", "k = 0")}
    assert drafted["k = 2"] > drafted["k = 0"] == 0
    assert {point["blocks"] for point in load["points"]} == {2}
    assert plot.read_bytes().startswith(b"\x89PNG")
    (streams,) = result["streams"]["found"]
    assert [wave["finished"] for wave in streams["waves"]] == [20, 20]
    assert {one["program"] for one in streams["memory"]} == {"coordinator", "verifier", "drafter"}
    assert all(len(one["proportional_after"]) == 2 and one["proportional_peak"] > 0 for one in streams["memory"])
    assert [count for count, _ in streams["shares"]] == [1, 16, 20]
    assert all(0 < shares["scheduling"] < 1 for _, shares in streams["shares"])
    assert "met: 20 streams over 20 slots all finish: 20 of 20" in run.stdout
    assert [(one["streams"], one["blocks"], one["differing_texts"]) for one in result["batches"]["sizes"]] == [
        (1, 1, 0), (3, 1, 0)]
    assert f"model={model}" not in run.stdout and load["settings"]["model"] == "tiny"

    again = run_benchmark("--sections", "load", *options, cache=cache)
    assert again.returncode == 0, again.stderr
    assert "load 0.5" not in again.stderr  # nothing was left to measure
    assert json.loads(again.stdout.splitlines()[-1])["load"]["points"] == load["points"]


def test_feeding(cache: Path, model: Path) -> None:
    run = run_benchmark(
        "--sections", "feeding", f"--model={model}", "--feeding-streams", "1", "6", "--feeding-tokens=60",
        "--pass-ms=100", "--gap-ms=1", "--most-fed=40", cache=cache)
    assert run.returncode == 0, run.stderr
    feeding = json.loads(run.stdout.splitlines()[-1])["feeding"]
    assert [(one["streams"], one["draft_length"], one["tokens"]) for one in feeding["costs"]] == [
        (1, 0, 60), (1, 4, 60), (6, 0, 360), (6, 4, 360)]
    assert all(one["messages"] <= one["tokens"] for one in feeding["costs"])
    assert sum(one["coordinator_cpu_s"] for one in feeding["costs"]) > 0
    (fed,) = feeding["fed"]  # a pass takes 100 ms, so that the bound is broken by the first number of streams
    assert fed["gap"]["p50"] >= 0.1
    assert (feeding["most_streams"], feeding["bound_reached"]) == (0, True)
    assert "MISSED: one coordinator feeds" in run.stdout


@pytest.mark.parametrize(
    ("option", "named"),
    [("--streams=0", "--streams"), ("--loads=0", "--loads"), ("--log=/nowhere/log", "--log"),
     ("--budget=-1", "--budget"), ("--burst=1000", "--burst"), ("--device=tpu", "--device"),
     ("--batch-sizes=0", "--batch-sizes"), ("--stream-slots=500", "--stream-slots"), ("--kv-tokens=-1", "--kv-tokens")],
)
def test_what_cannot_be_measured_is_refused(option: str, named: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{named}: must|^{named}: lies"):
        check_options(parser().parse_args([option]))


def test_a_refusal_is_one_line_and_comes_at_once(tmp_path: Path) -> None:
    run = run_benchmark("--prompts=/nowhere", cache=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: --prompts")
    assert len(run.stderr.splitlines()) == 1


def test_the_cache_has_room_for_a_section_s_texts() -> None:
    args = parser().parse_args(["--device=cpu"])
    assert stack_for(args, slots=64, tokens=176).kv_tokens == 64 * 192
    assert stack_for(args, slots=2, tokens=176).kv_tokens == StackConfig().kv_tokens
    args = parser().parse_args(["--device=cpu", "--kv-tokens=640"])
    assert stack_for(args, slots=600, tokens=176).kv_tokens == 640
    assert stack_for(args, slots=600, tokens=176).max_batch_rows == 600
