"""The two scripts at the root, as a user types their commands, with two models of a hub cache and no network."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.environment import ROOT
from tests.tiny_models import write_tiny_model

Typed = Callable[..., "subprocess.CompletedProcess[str]"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with gpt2 and gpt2-medium: other weights, one vocabulary."""
    home = tmp_path_factory.mktemp("hub")
    for seed, name in enumerate(("gpt2", "gpt2-medium")):
        repository, revision = home / "hub" / f"models--{name}", f"{seed:040x}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(revision, "utf-8")
        write_tiny_model(repository / "snapshots" / revision, "gpt2", seed=seed)
    return home


@pytest.fixture
def typed(hub: Path, tmp_path: Path) -> Typed:
    """Run a command line in a directory that has the scripts."""
    for script in ("qspec_example.py", "benchmark_qspec.py"):
        (tmp_path / script).symlink_to(ROOT / script)
    environment = {
        **os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "QSPEC_CACHE_DIR": str(hub / "converted"),
        "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "",
    }
    environment = {key: value for key, value in environment.items() if key not in ("FORCE_COLOR", "HF_HUB_CACHE")}

    def run(line: str, **more: str) -> subprocess.CompletedProcess[str]:
        program, *arguments = shlex.split(line)
        assert program == "python"
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True,
            timeout=150, check=False)

    return run


SAME = "--model_name gpt2 --same_model"
DIFFERENT = "--draft_model_name gpt2 --verify_model_name gpt2-medium"


@pytest.mark.parametrize("models", [SAME, DIFFERENT])
def test_the_example(typed: Typed, models: str) -> None:
    done = typed(f"python qspec_example.py {models} --verbose")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not re.search(r"\033\[3\dm", done.stdout)  # no colours; the model's random bytes may hold an escape
    assert "drafted tokens accepted" in done.stdout
    assert done.stdout.count("tokens/s") == 2


@pytest.mark.parametrize("models", [SAME, DIFFERENT])
def test_the_benchmark(typed: Typed, models: str, tmp_path: Path) -> None:
    done = typed(f"python benchmark_qspec.py {models} --test_all")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "bench-results" / "qspec_benchmark.json").read_text("utf-8"))
    ways = record["ways"]
    draft, verify = record["settings"]["draft_method"], record["settings"]["verify_method"]
    assert verify in ("none:fp32", "none:fp16")  # auto: what was found here
    assert {f"autoregressive {verify}", f"speculative none -> {verify}", f"QSPEC {draft} -> {verify}"} <= ways.keys()
    assert all(name in done.stdout for name in ways)
    assert record["differing_texts"] == []
    plain = ways[f"autoregressive {verify}"]
    assert plain["speed_up"] == 1.0
    assert plain["tokens_per_round"] == 1.0
    assert len(plain["seconds"]) == 3 * 4
    assert 0 < plain["tokens"] <= 3 * 4 * 64
    assert all(way["tokens"] == plain["tokens"] for way in ways.values() if way["verify_method"] == verify)
    if models == SAME:
        assert ways[f"speculative none -> {verify}"]["acceptance"] > 0.9
        assert ways[f"speculative none -> {verify}"]["tokens_per_round"] > 3.0
    assert (tmp_path / "bench-results" / "qspec_benchmark.png").read_bytes().startswith(PNG)


def test_the_same_seed_makes_the_same_text_in_both_ways(typed: Typed) -> None:
    command = f"python qspec_example.py {SAME} --input 'the lazy dog' -s 0 -M 12 -g 3 --verify_quantization none"
    first, second = (typed(command, FORCE_COLOR="1") for _ in range(2))
    texts = [line for line in first.stdout.splitlines() if line]
    assert texts[2] == texts[5], first.stdout
    assert [line for line in second.stdout.splitlines() if line][2] == texts[2]
    assert typed(command.replace("-s 0", "-s 1")).stdout.splitlines()[2:4] != first.stdout.splitlines()[2:4]


def test_colours_when_asked_for(typed: Typed) -> None:
    done = typed(f"python qspec_example.py {SAME} -v -M 12 -s 0 --draft_quantization none", FORCE_COLOR="1")
    assert "\033[32m" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--draft_quantization int7", "error: draft_quantization: unknown method 'int7'; choose one of: none"),
        ("--max_tokens 0", "error: max_len: must be at least 1, got 0"),
        ("--seed -1", "error: random_seed: must be in 0..2^64-1, got -1"),
        ("--input ''", "error: --input: "),
        ("--model_name nowhere/nothing", "error: model: nowhere/nothing is no local directory"),
    ],
)
def test_bad_input_is_one_line(typed: Typed, arguments: str, message: str) -> None:
    for script in ("qspec_example.py", "benchmark_qspec.py"):
        done = typed(f"python {script} {SAME} {arguments}")
        assert done.returncode == 2
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1


def test_without_matplotlib_there_is_a_line_instead_of_a_chart(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "absent" / "matplotlib").mkdir(parents=True)
    (tmp_path / "absent" / "matplotlib" / "__init__.py").write_text("raise ImportError('planted')\n", "utf-8")
    done = typed(
        f"python benchmark_qspec.py {SAME} -M 4 --repeats 1 --input the", PYTHONPATH=str(tmp_path / "absent"))
    assert done.returncode == 0, done.stderr
    assert "no chart: matplotlib is not installed" in done.stdout
    assert not list((tmp_path / "bench-results").glob("*.png"))
