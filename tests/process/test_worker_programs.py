"""``python -m verifier`` and ``python -m drafter``, as far as they go without a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qspec.device import has_driver
from qspec.status import EventKind, read_events

WORKERS = ("verifier", "drafter")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A runtime directory with a short name."""
    with tempfile.TemporaryDirectory(prefix="qspec-") as name:
        yield Path(name)


@pytest.fixture
def foreign_directory(directory: Path) -> Path:
    """One of another user."""
    if os.geteuid() != 0:
        return Path("/")
    os.chown(directory, 12345, 12345)
    return directory


def run(worker: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a worker to its end."""
    return subprocess.run(
        [sys.executable, "-m", worker, *options], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(("options", "field"), [
    (["--max-slots=0"], "max_slots"),
    (["--listen=nonsense", "--runtime-dir=/tmp"], "listen"),
    (["--listen=127.0.0.1:0"], "runtime_dir"),
    (["--model=/no/such/model"], "model"),
    (["--wait-for-model=-1"], "wait_for_model"),
])
def test_bad_options_are_one_line(worker: str, options: list[str], field: str, directory: Path) -> None:
    ended = run(worker, f"--listen=unix:{directory}/w.sock", *options)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (*stages, line) = ended.stderr.splitlines()
    assert line.startswith(f"error: {field}: ")
    assert "Traceback" not in ended.stderr
    assert not any("error" in stage for stage in stages)


@pytest.mark.skipif(has_driver(), reason="there is a GPU")
@pytest.mark.parametrize("worker", WORKERS)
def test_a_gpu_that_is_not_there_is_one_line_before_the_model_is_looked_for(worker: str, directory: Path) -> None:
    ended = run(worker, f"--listen=unix:{directory}/w.sock", "--device=cuda", "--model=/no/such/model")
    assert (ended.returncode, ended.stderr) == (2, "error: device: torch sees no NVIDIA GPU\n")


@pytest.mark.parametrize("worker", WORKERS)
def test_a_missing_model_is_waited_for_with_one_line(worker: str, directory: Path) -> None:
    ended = run(worker, f"--listen=unix:{directory}/w.sock", "--model=/no/such/model", "--wait-for-model=0.3")
    assert ended.returncode == 2
    waiting, error = ended.stderr.splitlines()
    assert waiting == "waiting for the model, at most 0.3 s: /no/such/model does not exist"
    assert error.startswith("error: model: /no/such/model does not exist; ")


@pytest.mark.parametrize("worker", WORKERS)
def test_another_users_sockets_are_refused_before_anything_is_loaded(worker: str, foreign_directory: Path) -> None:
    ended = run(worker, f"--listen=unix:{foreign_directory}/w.sock", "--model=/no/such/model")
    assert ended.returncode == 2
    assert re.fullmatch(
        rf"error: runtime_dir: {foreign_directory} belongs to uid \d+ and this process runs as uid \d+; give .*\n",
        ended.stderr)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_parent_is_told_why(worker: str, directory: Path) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", worker, f"--listen=unix:{directory}/w.sock", "--model=/no/such/model",
         f"--status-fd={writing}"],
        pass_fds=[writing], stderr=subprocess.PIPE,
    ) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            *_, last = read_events(stream)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert last.kind is EventKind.ERROR
    assert [violation.field for violation in last.violations] == ["model"]
    assert stderr == b""


def test_lifeline_ends_a_worker_that_loads(directory: Path) -> None:
    runtime_dir = directory / "runtime"
    runtime_dir.mkdir(mode=0o700)
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "verifier", f"--listen=unix:{runtime_dir}/w.sock", f"--runtime-dir={runtime_dir}",
         f"--lifeline-fd={reading}"],
        pass_fds=[reading], stderr=subprocess.DEVNULL,
    ) as process:
        os.close(reading)
        os.close(writing)
        assert process.wait(30) == 0
    assert not runtime_dir.exists()
