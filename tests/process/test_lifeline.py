"""A child ends with its parent, however busy it is, and takes its directory along."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from qspec.lifeline import watch_lifeline

_CHILD = """
import sys
from pathlib import Path
from qspec.lifeline import watch_lifeline
watch_lifeline(int(sys.argv[1]), runtime_dir=Path(sys.argv[2]))
print("watching", flush=True)
while True:  # busy, and holding the interpreter
    sum(range(1000))
"""

_PARENT = """
import os, subprocess, sys, time
reading, writing = os.pipe()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(reading), sys.argv[2]], pass_fds=[reading])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_loss_is_noticed_and_silence_is_not_loss() -> None:
    reading, writing = os.pipe()
    lost = threading.Event()
    thread = watch_lifeline(reading, lost.set)
    os.write(writing, b"still here")
    assert not lost.wait(0.1)
    assert thread.daemon
    os.close(writing)
    assert lost.wait(5)
    thread.join(5)
    os.close(reading)


def test_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    runtime_dir = tmp_path / "runtime"
    runtime_dir.mkdir()
    (runtime_dir / "verifier.sock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, _CHILD, str(runtime_dir)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines - {"watching"})
        assert "watching" in lines
        assert runtime_dir.exists()
        parent.kill()
        parent.wait(10)
        deadline = time.monotonic() + 10
        while (_alive(pid) or runtime_dir.exists()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _alive(pid)
        assert not runtime_dir.exists()


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody but init can reap it
