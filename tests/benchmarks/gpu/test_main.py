"""``python -m benchmarks.gpu``: processes follow one another as long as faults end them, and options are checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environment import ROOT
from benchmarks.gpu import __main__ as program


@pytest.mark.parametrize(("codes", "ended", "attempts"), [
    ([0], 0, 1), ([1], 1, 1), ([75, 0], 0, 2), ([-11, 75, 1], 1, 3), ([75] * 9, 1, 4)])
def test_another_process_goes_on_behind_a_fault(
    codes: list[int], ended: int, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    class Process:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            assert command == [sys.executable, "-m", "benchmarks.gpu", "--limit", "50"]
            seen.append((env["QSPEC_BENCH_ATTEMPT"], env["QSPEC_BENCH_UNTIL"]))

        def wait(self) -> int:
            return codes[len(seen) - 1]

        def terminate(self) -> None:
            """It has ended."""

    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--limit", "50"])
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    assert program.main() == ended
    assert [number for number, _ in seen] == [str(number) for number in range(attempts)]
    assert len({until for _, until in seen}) == 1, "all of them have the first one's time"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = {**os.environ, "TRITON_INTERPRET": "1", "QSPEC_COMMIT": "c0ffee"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options], cwd=ROOT, capture_output=True, text=True, timeout=170,
        check=False, env=environment)


@pytest.mark.parametrize(("options", "said"), [
    (("--section", "x8"), "there is no section 'x8'; choose from decode"),
    (("--section", "x7", "--sampling", "warm"), "there is no way of sampling called warm; there are greedy, coupled"),
])
def test_unknown_names_are_refused(
    options: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *options])
    monkeypatch.setenv("QSPEC_BENCH_ATTEMPT", "0")
    monkeypatch.setenv("QSPEC_BENCH_UNTIL", "0")
    assert program.main() == 2
    assert said in capsys.readouterr().err


def test_a_run_ends_in_json(tmp_path: Path) -> None:
    done = run("--section", "elementwise", f"--output={tmp_path}", "--seconds", "100", "--quick")
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["environment"]["commit"] == "c0ffee" and last["environment"]["modified"] is None
    assert last["sections"]["elementwise"] == {"complete": True, "cells": 1, "failed": [], "left": 0}
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["sections"]["elementwise"]["complete"]
