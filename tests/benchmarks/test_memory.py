"""PSS from the kernel's own files, over a whole tree of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.memory import descendants, read_memory


def write_process(proc: Path, pid: int, parent: int, *, name: str = "python", state: str = "S") -> None:
    """A process as the kernel shows it."""
    directory = proc / str(pid)
    directory.mkdir(parents=True)
    (directory / "stat").write_text(f"{pid} ({name}) {state} {parent} 1 1 0 -1", "utf-8")


def test_a_tree_is_found_whatever_its_processes_are_called(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1)
    write_process(tmp_path, 11, 10, name="a ) S 99 b")
    write_process(tmp_path, 12, 11)
    write_process(tmp_path, 13, 10, state="Z")
    write_process(tmp_path, 20, 1)
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB", "utf-8")
    assert descendants(10, tmp_path) == [11, 12]


def test_figures_are_read_in_bytes(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1)
    (tmp_path / "10" / "smaps_rollup").write_text(
        "55-7f ---p 00000000 00:00 0 [rollup]\nRss: 30 kB\nPss: 20 kB\nPss_Anon: 1 kB\nPrivate_Clean: 4 kB\n"
        "Private_Dirty: 5 kB\n", "utf-8")
    (tmp_path / "10" / "cmdline").write_text("/usr/bin/python\0-m\0verifier\0--listen=unix:x\0", "utf-8")
    found = read_memory(10, tmp_path)
    assert (found.program, found.resident, found.proportional, found.private) == ("verifier", 30720, 20480, 9216)


def test_a_page_that_two_processes_map_counts_once_in_the_sum() -> None:
    size = 32 << 20
    code = (
        "import mmap, os, sys\n"
        f"pages = mmap.mmap(-1, {size})\n"
        f"pages.write(b'x' * {size})\n"
        "child = os.fork()\n"
        f"pages.seek(0); pages.read({size})\n"
        "os.write(1, b'ready\\n')\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        tree = [process.pid, *descendants(process.pid)]
        assert set(tree) <= set(descendants(os.getpid()))
        memory = [read_memory(pid) for pid in tree]
        process.stdin.write("\n\n")
    assert len(tree) == 2
    assert sum(found.resident for found in memory) > 2 * size
    assert size < sum(found.proportional for found in memory) < 2 * size
