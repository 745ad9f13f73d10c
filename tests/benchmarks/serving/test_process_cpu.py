"""CPU seconds of another process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.serving.simulated_stack import process_cpu_s


def test_what_another_process_has_worked_is_told_with_its_threads() -> None:
    code = (
        "import sys, threading, time\n"
        "def work():\n"
        "    end = time.thread_time() + 0.2\n"
        "    while time.thread_time() < end: pass\n"
        "before = time.process_time()\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); work()\n"
        "print(time.process_time(), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        own = float(process.stdout.readline())
        told = process_cpu_s(process.pid)
        process.stdin.write("\n")
    assert own > 0.4
    assert told == pytest.approx(own, abs=0.02)


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError):
        process_cpu_s(2**22 - 1)
