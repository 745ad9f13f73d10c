"""Ending when the parent ends, whatever way that was.

A parent keeps the writing end of a pipe open and gives the reading end to its child. However the parent ends, SIGKILL
included, the kernel closes its end, and a thread of the child that reads the pipe sees the end of the file. Nothing has
to be polled and nobody has to be asked. The thread is started before anything slow is imported, and a daemon, so that
it works while the main thread imports, computes or hangs.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def watch_lifeline(
    fd: int, on_loss: Callable[[], object] | None = None, *, runtime_dir: Path | None = None
) -> threading.Thread:
    """Call ``on_loss`` in a daemon thread once the other end of the pipe ``fd`` is closed.

    The default removes ``runtime_dir``, if given, and ends the process at once. ``fd`` must be the reading end of a
    pipe whose writing end this process (and its other children) does not hold.
    """
    act = on_loss if on_loss is not None else lambda: _end(runtime_dir)
    thread = threading.Thread(target=_wait, args=(fd, act), name="lifeline", daemon=True)
    os.set_inheritable(fd, False)
    thread.start()
    return thread


def _wait(fd: int, on_loss: Callable[[], object]) -> None:
    while os.read(fd, 1024):
        pass
    on_loss()


def _end(runtime_dir: Path | None) -> NoReturn:
    if runtime_dir is not None:
        shutil.rmtree(runtime_dir, ignore_errors=True)
    os._exit(0)
