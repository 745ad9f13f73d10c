"""``make run`` hands the prompt over as it was typed, and set-up says clearly what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_imports import ROOT

RECORDER = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""
"""Stands in for the environment's Python: prints its arguments."""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that counts as set up."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(RECORDER, encoding="utf-8")
    python.chmod(0o755)
    for stamp in (".pip", ".runtime", ".dev"):
        (tmp_path / "venv" / stamp).touch()
    return tmp_path / "venv"


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository's root, without the variables of a make that runs the tests."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PROMPT")}
    program = shutil.which("make")
    assert program is not None
    return subprocess.run(
        [program, *arguments], cwd=ROOT, env={**inherited, **variables}, capture_output=True, text=True, timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "Why is the sky blue?",
        "It's 5 o'clock",
        'He said "no" \\ twice',
        "It costs $5, or $HOME, or $(shell echo pwned)",
        "`date` # no comment",
        "two\nlines",
        "-starts with a dash = and more",
        "trailing $",
        "Grüße, 世界 🙂",
        "",
    ],
)
def test_the_prompt_arrives_as_typed(environment: Path, prompt: str) -> None:
    for result in (
        make("run", f"VENV={environment}", f"PROMPT={prompt}", "ARGS=--max-tokens 3"),
        make("run", f"VENV={environment}", "ARGS=--max-tokens 3", PROMPT=prompt),
    ):
        assert result.returncode == 0, result.stderr
        expected = ["-m", "coordinator.client", f"--prompt={prompt}", "--max-tokens", "3"]
        assert json.loads(result.stdout) == expected


def test_without_a_prompt_the_arguments_decide(environment: Path) -> None:
    result = make("run", f"VENV={environment}", "ARGS=--prompts-file benchmarks/prompts.jsonl --json")
    assert json.loads(result.stdout)[2:] == ["--prompts-file", "benchmarks/prompts.jsonl", "--json"]


def test_an_unusable_python_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    result = make("run", f"VENV={tmp_path / 'venv'}", "PYTHON=/nowhere/python3")
    assert result.returncode != 0
    assert "Python 3.10 or later is needed (/nowhere/python3)" in result.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_package_index_is_named(tmp_path: Path) -> None:
    result = make(
        "run", f"VENV={tmp_path / 'venv'}", f"PYTHON={sys.executable}",
        PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS=str(tmp_path),
    )
    assert result.returncode != 0
    assert result.stdout == ""
    assert "Is a Python package index reachable?" in result.stderr
    assert not (tmp_path / "venv" / ".runtime").exists()


def test_the_kernels_for_arm_are_skipped_loudly_without_the_tools(tmp_path: Path) -> None:
    sh = shutil.which("sh")
    assert sh is not None
    (tmp_path / "sh").symlink_to(sh)
    result = make("native-neon", PATH=str(tmp_path))
    assert result.returncode == 0
    assert result.stderr.startswith("SKIPPED: native-neon needs cmake (Debian: ")
