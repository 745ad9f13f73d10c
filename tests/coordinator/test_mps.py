"""The MPS daemon of a stack, over a fake binary: found, started, told about, and gone, whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator import mps
from coordinator.mps import BINARY, LOGS, PIPES, MpsDaemon, mps_for_workers, running_daemon
from qspec.errors import QspecError
from tools.check_imports import ROOT

_SUPERVISOR = """
import sys, time
from pathlib import Path
from coordinator.mps import MpsDaemon
daemon = MpsDaemon(sys.argv[1], Path(sys.argv[2]))
daemon.wait_ready()
print(daemon.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake, installed, and where it writes the numbers of its two processes."""
    path = tmp_path / "bin" / BINARY
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/coordinator/fake_mps.py" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("QSPEC_FAKE_MPS_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(mps, "DEFAULT_PIPES", tmp_path / "no-daemon")
    monkeypatch.delenv(PIPES, raising=False)
    return path


def pids(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(*processes: int) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, [pid for pid in processes if alive(pid)]
        time.sleep(0.02)


def test_clients_are_told_where_the_daemon_is(binary: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with mps_for_workers(tmp_path / "mps", told.append) as environment:
        assert environment == {PIPES: str(tmp_path / "mps" / "pipe"), LOGS: str(tmp_path / "mps" / "log")}
        assert (tmp_path / "mps" / "pipe" / "control").exists()
        assert all(map(alive, pids(tmp_path)))
        assert running_daemon(environment) == tmp_path / "mps" / "pipe", "so that nobody starts a second one"
    assert told == ["MPS daemon started: verifier and drafter share the GPU's context"]
    assert not any(map(alive, pids(tmp_path))), "close has waited for its end"
    assert not (tmp_path / "mps").exists()


def test_a_daemon_that_does_not_end_is_killed(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSPEC_FAKE_MPS", "stubborn")
    with mps_for_workers(tmp_path / "mps", lambda text: None):
        daemon, server = pids(tmp_path)
        assert alive(daemon)
        assert alive(server)
    assert not any(map(alive, (daemon, server)))


def test_nothing_is_left_of_a_supervisor_that_was_killed(binary: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SUPERVISOR, str(binary), str(tmp_path / "mps")], stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    ) as supervisor:
        assert supervisor.stdout is not None
        guardian = int(supervisor.stdout.readline())
        daemon, server = pids(tmp_path)
        assert all(map(alive, (guardian, daemon, server)))
        supervisor.kill()
        wait_until_gone(guardian, daemon, server)
    assert not (tmp_path / "mps").exists()


def test_the_daemon_dies_with_a_guardian_that_was_killed(binary: Path, tmp_path: Path) -> None:
    daemon = MpsDaemon(str(binary), tmp_path / "mps")
    daemon.wait_ready()
    process, server = pids(tmp_path)
    os.kill(daemon.pid, signal.SIGKILL)
    wait_until_gone(process)
    daemon.close()
    os.kill(server, signal.SIGKILL)  # a session of its own without anybody who knows it: the fake's, not the real one's


def test_a_daemon_that_fails_is_told_and_done_without(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSPEC_FAKE_MPS", "fail")
    told: list[str] = []
    with mps_for_workers(tmp_path / "mps", told.append) as environment:
        assert environment == {}
    (line,) = told
    assert "190 µs" in line
    assert "ended with exit code 1: an instance of this daemon is already running" in line


def test_a_daemon_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch(mode=0o644)
    daemon = MpsDaemon(str(tmp_path / "empty"), tmp_path / "mps")
    with pytest.raises(QspecError, match="cannot start .*empty: Permission denied"):
        daemon.wait_ready()
    daemon.close()
    assert not (tmp_path / "mps").exists()


def test_without_the_binary_one_line_says_what_it_costs(
    binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary.unlink()
    told: list[str] = []
    with mps_for_workers(tmp_path / "mps", told.append) as environment:
        assert environment == {}
    assert told == [f"{mps.TURN_TAKING} ({BINARY} is not installed)"]
    assert not (tmp_path / "mps").exists()


def test_a_daemon_that_runs_is_used(binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = tmp_path / "no-daemon"
    pipes.mkdir()
    (pipes / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    told: list[str] = []
    with mps_for_workers(tmp_path / "mps", told.append) as environment:
        assert environment == {}
    assert told == [f"MPS runs already ({pipes})"]
    (pipes / "nvidia-cuda-mps-control.pid").write_text("0x\n")
    assert running_daemon({}) is None
    assert running_daemon({PIPES: str(pipes)}) == pipes, "its PID may be one of another container"
    (pipes / "nvidia-cuda-mps-control.pid").unlink()
    (pipes / "control").touch()  # which a daemon that ended leaves
    assert running_daemon({PIPES: str(pipes)}) is None
