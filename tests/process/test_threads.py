"""How many CPUs a worker takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qspec import threads


def write(path: Path, text: str) -> None:
    """Write a file and its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_smallest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/pod/worker\n")
    write(tmp_path / "v2/cpu.max", "max 100000\n")
    write(tmp_path / "v2/pod/cpu.max", "150000 100000\n")
    write(tmp_path / "v2/pod/worker/cpu.max", "400000 100000\n")
    assert threads.cgroup_quota(tmp_path / "v2", tmp_path / "membership") == 1.5


def test_inside_a_container_the_mount_is_all_there_is(tmp_path: Path) -> None:
    write(tmp_path / "membership", "0::/../../elsewhere\n")
    write(tmp_path / "v2/cpu.max", "200000 100000\n")
    assert threads.cgroup_quota(tmp_path / "v2", tmp_path / "membership") == 2.0


def test_version_one(tmp_path: Path) -> None:
    write(tmp_path / "membership", "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n")
    write(tmp_path / "v1/cpu,cpuacct/docker/a/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "v1/cpu,cpuacct/docker/a/cpu.cfs_period_us", "100000\n")
    write(tmp_path / "v1/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "v1/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert threads.cgroup_quota(tmp_path / "v1", tmp_path / "membership") == 0.5


@pytest.mark.parametrize("text", ["", "garbage", "max 100000", "100000 0"])
def test_no_quota(tmp_path: Path, text: str) -> None:
    write(tmp_path / "membership", "0::/\n")
    write(tmp_path / "v2/cpu.max", text)
    assert threads.cgroup_quota(tmp_path / "v2", tmp_path / "membership") is None
    assert threads.cgroup_quota(tmp_path / "none", tmp_path / "nothing") is None


def test_at_least_one_and_no_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 0.5)
    assert threads.usable_cpus() == 1
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 10_000.0)
    assert threads.usable_cpus() == len(os.sched_getaffinity(0))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_PROC_BIND"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
    monkeypatch.setattr(threads, "usable_cpus", lambda: 4)
    for name in ("GOMP_SPINCOUNT", "OMP_PROC_BIND"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.configure_threads(0) == 3
    assert os.environ["GOMP_SPINCOUNT"] == "30000"
    assert "OMP_PROC_BIND" not in os.environ  # fewer threads than CPUs: left to the kernel
    assert threads.configure_threads(5) == 5
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.configure_threads(0) == 4
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["OMP_PROC_BIND"] == "true"
    monkeypatch.delenv("OMP_PROC_BIND")
    assert threads.configure_threads(0, bind=False) == 4
    assert "OMP_PROC_BIND" not in os.environ


@pytest.mark.skipif(threads.usable_cpus() < 2, reason="needs two CPUs")
def test_the_thread_that_loads_torch_keeps_all_cpus_for_native_kernels() -> None:
    """OpenMP, told to bind, would leave it and whatever it starts on a single one."""
    program = (
        "import os, threading\n"
        "from qspec.threads import configure_threads, native_threads\n"
        "configure_threads(0, bind=False)\n"
        "def load():\n"
        "    import torch\n"
        "    torch.ones(1 << 20).sum()\n"
        "    print(native_threads(0, lambda *_: None), len(os.sched_getaffinity(0)))\n"
        "thread = threading.Thread(target=load)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=True
    )
    assert result.stdout.split() == [str(threads.usable_cpus()), str(len(os.sched_getaffinity(0)))]


@pytest.mark.parametrize(
    ("asked", "preset", "usable", "quota", "count", "line"),
    [
        (0, "", 4, None, 4, None),
        (0, "3", 4, None, 3, None),
        (2, "3", 4, None, 2, None),
        (9, "", 4, None, 4, "9 threads were asked for, the process may use 4 CPUs: the kernels use 4"),
        (0, "9", 4, 4.5, 4, "9 threads were asked for, the process may use 4 CPUs: the kernels use 4"),
        (0, "", 1, 0.5, 1, "the control group grants 0.5 of a CPU: the kernels use 1 thread, and wait"),
        (2, "", 1, 0.5, 1, "the control group grants 0.5 of a CPU: the kernels use 1 thread, and wait"),
    ],
)
def test_native_kernels_have_no_more_threads_than_cpus(
    monkeypatch: pytest.MonkeyPatch, asked: int, preset: str, usable: int, quota: float | None, count: int,
    line: str | None,
) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: usable)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    monkeypatch.setenv("OMP_NUM_THREADS", preset)
    told: list[str] = []
    assert threads.native_threads(asked, lambda text, _share: told.append(text)) == count
    assert told == ([line] if line else [])
