"""NVIDIA's Multi-Process Service for the workers of one stack: what makes taking turns on a GPU cheap.

Without it two processes cannot be on a GPU at once, and each change of turns is a switch of contexts: about 190 µs,
twice a round. With it they share a context and a turn costs about 20 µs. It runs as any user and needs no setting of
the GPU. The price: a fatal fault of one worker on the GPU ends the other one's context, too.

The supervisor runs a daemon of its own, with pipes and logs in the stack's directory, unless one runs already, which
the workers find by themselves. ``coordinator.mps_guardian`` stands between the two and sees to it that nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from coordinator.supervisor import ChildProcess
from qspec.errors import QspecError

BINARY = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
"""Environment variables by which a CUDA program finds its daemon, and a daemon its place for logs."""
DEFAULT_PIPES = Path("/tmp/nvidia-mps")
CONTROL_FILE, PID_FILE = "control", "nvidia-cuda-mps-control.pid"
GUARDIAN = "coordinator.mps_guardian"
START_TIMEOUT_S = 15.0
STOP_GRACE_S = 5.0
TURN_TAKING = "verifier and drafter take turns on the GPU at about 190 µs a change; with MPS it is 20 µs"


class MpsDaemon:
    """A private daemon, from ``wait_ready`` to ``close``; started on construction in ``directory``."""

    def __init__(self, binary: str, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` is added to its own."""
        self._news = threading.Event()
        arguments = [f"--binary={binary}", f"--directory={directory}"]
        self._guardian = ChildProcess("MPS daemon", GUARDIAN, arguments, self._news.set, environment)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> dict[str, str]:
        """What the environment of its clients has to say. ``QspecError`` when it does not start."""
        while self._guardian.ready is None and not self._guardian.ended:
            if not self._news.wait(timeout_s):
                raise QspecError(f"the MPS daemon was not ready within {timeout_s:g} s")
            self._news.clear()
        if (ready := self._guardian.ready) is None:
            raise self._guardian.failure()
        return {PIPES: ready.address, LOGS: str(ready.detail["logs"])}

    @property
    def pid(self) -> int:
        """The guardian's number."""
        return self._guardian.pid

    def close(self) -> None:
        """End it and everything that it started; blocks. Harmless when repeated."""
        self._guardian.terminate()
        self._guardian.close(STOP_GRACE_S)
        with contextlib.suppress(ProcessLookupError):  # what a guardian that was killed itself could not see to
            os.killpg(self._guardian.pid, signal.SIGKILL)


@contextlib.contextmanager
def mps_for_workers(
    directory: Path, tell: Callable[[str], None], environment: Mapping[str, str] = os.environ,
    added: Mapping[str, str] | None = None,
) -> Iterator[dict[str, str]]:
    """What to add to the environment of workers that share a GPU, while it is entered; one line of ``tell`` says why.

    ``directory``: where a daemon of one's own keeps pipes and logs; ``added`` to its environment. A daemon that does
    not start is told and done without.
    """
    if (running := running_daemon(environment)) is not None:
        tell(f"MPS runs already ({running})")
        yield {}
        return
    if (binary := shutil.which(BINARY, path=environment.get("PATH"))) is None:
        tell(f"{TURN_TAKING} ({BINARY} is not installed)")
        yield {}
        return
    daemon = MpsDaemon(binary, directory, added)
    try:
        try:
            added = daemon.wait_ready()
            tell("MPS daemon started: verifier and drafter share the GPU's context")
        except QspecError as error:
            tell(f"{TURN_TAKING}, but {error}")
            added = {}
        yield added
    finally:
        daemon.close()


def running_daemon(environment: Mapping[str, str]) -> Path | None:
    """The pipe directory of a daemon that programs with this ``environment`` find; None when there is none.

    A daemon that ends removes the file with its PID, but not its pipes. One that the environment names may run in
    another container, where its PID means nothing here: that the file is there is enough.
    """
    if named := environment.get(PIPES):
        return Path(named) if (Path(named) / PID_FILE).exists() else None
    try:
        os.kill(int((DEFAULT_PIPES / PID_FILE).read_text()), 0)
    except PermissionError:  # it is another user's, and alive
        return DEFAULT_PIPES
    except (OSError, ValueError):
        return None
    return DEFAULT_PIPES
