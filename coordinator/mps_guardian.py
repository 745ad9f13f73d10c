"""``python -m coordinator.mps_guardian``: runs an MPS daemon in the foreground and leaves nothing of it behind.

The daemon starts servers, which nobody but it knows, and which go on when it is killed: a signal at the parent's death
reaches the daemon alone. So this process is their *subreaper* (``prctl(2)``): whatever loses its parent below it
becomes its own child, can be found, and is killed, whether it made a session of its own or not. It ends with its
lifeline, on SIGTERM, or with the daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from coordinator.mps import CONTROL_FILE, LOGS, PIPES, START_TIMEOUT_S
from coordinator.supervisor import ForeignProgram
from qspec.cli import EXIT_ERROR, run_program
from qspec.errors import QspecError
from qspec.lifeline import watch_lifeline
from qspec.status import Status

OUTPUT_FILE = "foreground.log"
GRACE_S = 2.0
"""Seconds that the daemon has to end after SIGTERM."""
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOOK_EVERY_S = 0.1


def main() -> int:
    """Guard one daemon to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, metavar="PATH", help="the daemon")
    parser.add_argument("--directory", required=True, type=Path, help="made for its pipes and logs, and removed")
    parser.add_argument("--status-fd", type=int, metavar="N", help="descriptor to write JSON status lines to")
    parser.add_argument("--lifeline-fd", type=int, metavar="N", help="pipe whose end means that the parent is gone")
    options = parser.parse_args()
    ended, status = threading.Event(), Status(options.status_fd)
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    pipes, logs = options.directory / "pipe", options.directory / "log"
    try:
        for directory in (pipes, logs):
            directory.mkdir(mode=0o700, parents=True)
        daemon = ForeignProgram(
            [options.binary, "-f"], {PIPES: str(pipes), LOGS: str(logs)}, logs / OUTPUT_FILE)  # before any thread
        if options.lifeline_fd is not None:
            watch_lifeline(options.lifeline_fd, ended.set)
        try:
            _guard(daemon, pipes, logs, ended, status)
        finally:
            _end_all(daemon)
    except QspecError as error:
        status.error(error)
        return EXIT_ERROR
    finally:
        shutil.rmtree(options.directory, ignore_errors=True)
    return 0


def _guard(daemon: ForeignProgram, pipes: Path, logs: Path, ended: threading.Event, status: Status) -> None:
    """Tell that it is ready, and wait for whatever ends it. ``QspecError`` when that is the daemon itself."""
    deadline, ready = time.monotonic() + START_TIMEOUT_S, False
    while not ended.wait(_LOOK_EVERY_S):
        if daemon.exit_code is not None:
            raise QspecError(f"the MPS daemon ended with exit code {daemon.exit_code}{_last_line(logs / OUTPUT_FILE)}")
        if not ready and (pipes / CONTROL_FILE).exists():
            status.ready(str(pipes), logs=str(logs))
            ready = True
        if not ready and time.monotonic() > deadline:
            raise QspecError(f"the MPS daemon made no {CONTROL_FILE} within {START_TIMEOUT_S:g} s")


def _last_line(output: Path) -> str:
    lines = output.read_text("utf-8", errors="replace").split("\n") if output.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]}" if said else ""


def _end_all(daemon: ForeignProgram) -> None:
    """End the daemon, politely first, and kill what it leaves until nothing is left."""
    with contextlib.suppress(ProcessLookupError):
        daemon.terminate()
    deadline = time.monotonic() + GRACE_S
    while daemon.exit_code is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S / 10)
    while left := descendants(os.getpid()):
        for pid in left:
            if pid == daemon.pid:
                daemon.kill()
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # a grandchild, whose parent is next to go
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_LOOK_EVERY_S / 10)


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``, those that nobody has waited for included."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # no process, or gone meanwhile
            fields = (directory / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(directory.name))
    found, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


if __name__ == "__main__":
    sys.exit(run_program(main))
