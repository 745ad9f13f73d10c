"""``python -m qspec quantize`` as a person runs it, and kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_models import write_tiny_model

_LIMIT_S = 100.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model and prompts."""
    directory = tmp_path_factory.mktemp("quantize")
    write_tiny_model(directory / "model", "llama_wide")
    prompts = [{"prompt": "the quick brown fox jumps over the lazy dog"[start:]} for start in range(20)]
    (directory / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), "utf-8")
    return directory


def start(files: Path, *options: str) -> subprocess.Popen[str]:
    """The command, started."""
    command = [sys.executable, "-m", "qspec", "quantize", str(files / "model"), "--method", "int4:g32",
               "--calibration", str(files / "prompts.jsonl"), *options]
    environment = {**os.environ, "QSPEC_CACHE_DIR": str(files / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and what it printed."""
    out, err = process.communicate(timeout=_LIMIT_S)
    return process.returncode, out, err


def test_a_killed_command_leaves_no_directory_and_goes_on(files: Path) -> None:
    """Wherever SIGKILL comes, the directory is not there; the next call makes what an undisturbed one makes."""
    output, whole = files / "out", files / "whole"
    partial = files / ".out.partial"
    for step in ("answers", "half-0000", "half-0003"):
        process = start(files, "--output", str(output))
        deadline = time.monotonic() + _LIMIT_S
        while not (partial / f"{step}.safetensors").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=_LIMIT_S)
        if process.returncode == 0:  # it was faster than the signal
            break
        assert not output.exists()
    if not output.exists():
        code, printed, said = finish(start(files, "--output", str(output)))
        assert code == 0, said
        assert "9 layers in int4-g32 by gptq" in printed and "going on" in said
    assert not partial.exists()
    assert finish(start(files, "--output", str(whole)))[0] == 0
    assert (output / "stored.safetensors").read_bytes() == (whole / "stored.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "int8"), "method: int8 has no 4-bit integers in groups"),
        (("--calibration", "nowhere.jsonl"), "calibration: nowhere.jsonl cannot be read"),
        (("--algorithm", "magic"), "invalid choice: 'magic'"),
        (("--answer-tokens", "-1"), "answer_tokens"),
    ],
)
def test_what_cannot_be_used_is_one_line(files: Path, options: tuple[str, str], message: str) -> None:
    code, printed, said = finish(start(files, "--output", str(files / "never"), *options))
    assert code == 2 and not printed
    assert message in said and "Traceback" not in said
    assert not (files / "never").exists()
