"""Stands in for ``nvidia-cuda-mps-control``: a daemon with a server of its own that does not end when it is asked to.

The server is a session of its own, as hard to find as can be. ``QSPEC_FAKE_MPS`` makes the daemon misbehave: ``fail``
(ends with a word on stderr), ``stubborn`` (ignores SIGTERM, too).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Be a daemon for a while."""
    if sys.argv[1:] != ["-f"]:
        sys.exit("only -f is known")
    behaviour = os.environ.get("QSPEC_FAKE_MPS", "")
    if behaviour == "fail":
        sys.exit("an instance of this daemon is already running")
    pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
    logs = Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
    assert logs.is_dir()
    server = os.fork()
    if not server:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        os._exit(0)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(os.environ["QSPEC_FAKE_MPS_PIDS"]).write_text(f"{os.getpid()} {server}")
    (pipes / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()))
    (pipes / "control").touch()
    time.sleep(60)


if __name__ == "__main__":
    main()
