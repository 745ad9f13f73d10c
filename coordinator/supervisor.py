"""Starts processes and ends them: the one place that does.

A child is tied to its parent by two pipes. On the *status pipe* it tells what it is loading, that it is ready, or why
it cannot be (``qspec.status``). The *lifeline* says nothing: its writing end is held by the parent alone, so that the
child sees the end of the file however the parent ends, and ends itself (``qspec.lifeline``). Each child is a session of
its own: a Ctrl-C at the terminal is the parent's to deal with. A program of somebody else's knows neither pipe: the
kernel kills it when the thread that started it ends, and a child of ours that watches it sees to its children
(``coordinator.mps_guardian``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qspec.errors import ContractViolation, InvalidInput, QspecError, WorkerLost
from qspec.status import EventKind, StatusEvent, read_events

_STDERR = 2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildProcess:
    """``python -m MODULE ARGUMENTS`` with a status pipe and a lifeline; ``name`` is what messages call it.

    ``changed`` is called, in a thread of its own, whenever an event has come and when the process has ended.
    ``environment`` is added to this process's own.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], changed: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._changed = changed
        self._stage = StatusEvent(kind=EventKind.STAGE, text="starting", fraction=0.0)
        self._ready: StatusEvent | None = None
        self._error: StatusEvent | None = None
        self._ended = threading.Event()
        status_end, status_fd = os.pipe()
        lifeline_fd, self._lifeline = os.pipe()
        command = [sys.executable, "-m", module, *arguments, f"--status-fd={status_fd}", f"--lifeline-fd={lifeline_fd}"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=_STDERR, start_new_session=True,
                pass_fds=(status_fd, lifeline_fd), env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            os.close(status_end)
            os.close(self._lifeline)
            raise QspecError(f"cannot start the {name}: {error.strerror}") from error
        finally:
            os.close(status_fd)
            os.close(lifeline_fd)
        self._reader = threading.Thread(target=self._read, args=(status_end,), name=f"{name} status", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def stage(self) -> StatusEvent:
        """The latest stage of loading."""
        return self._stage

    @property
    def ready(self) -> StatusEvent | None:
        """That the process serves, and where; None before."""
        return self._ready

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._ended.is_set()

    def failure(self) -> QspecError:
        """Why the process ended: what it said itself, or what the system says."""
        if (error := self._error) is not None:
            return InvalidInput(*error.violations) if error.violations else QspecError(f"{self.name}: {error.text}")
        code = self._process.returncode
        if code is not None and code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return WorkerLost(f"the {self.name} was ended by signal {-code}{hint}")
        return WorkerLost(f"the {self.name} ended unexpectedly with exit code {code}")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the process has ended within ``timeout_s`` seconds."""
        return self._ended.wait(timeout_s)

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process, hung or not (SIGKILL), and wait for that."""
        self._process.kill()
        self._ended.wait()

    def close(self, grace_s: float) -> None:
        """Make sure that the process has ended, at the latest ``grace_s`` seconds after ``terminate``."""
        if not self.wait(grace_s):
            self.kill()
        self._reader.join()
        if self._lifeline >= 0:  # only now: while it lives, a broken lifeline means an orphan's end
            os.close(self._lifeline)
            self._lifeline = -1

    def _read(self, status_end: int) -> None:
        with os.fdopen(status_end, "rb") as stream, contextlib.suppress(ContractViolation):
            for event in read_events(stream):
                if event.kind is EventKind.STAGE:
                    self._stage = event
                elif event.kind is EventKind.READY:
                    self._ready = event
                else:
                    self._error = event
                self._changed()
        self._process.wait()
        self._ended.set()
        self._changed()


class ForeignProgram:
    """A program of somebody else's in the foreground; what it prints is appended to the file ``output``.

    It is killed when the calling thread ends, so that is to be the main one; no other may run yet, because code of this
    process runs between fork and exec. ``QspecError`` when it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
        with output.open("ab") as file:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **environment},
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                raise QspecError(f"cannot start {command[0]}: {error.strerror}") from error

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._process.terminate()

    def kill(self) -> None:
        """End it (SIGKILL), and wait for that."""
        self._process.kill()
        self._process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
