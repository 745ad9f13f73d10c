"""A worker process around a fake: ``python -m tests.fake_worker verifier|drafter DIRECTORY [DELAY_S]``."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from tests.fakes import FakeDrafter, FakeVerifier
from tests.served import served_drafter, served_verifier


def main() -> None:
    """Serve until SIGTERM."""
    role, directory = sys.argv[1], Path(sys.argv[2])
    delay_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if role == "verifier":
        verifier = FakeVerifier(delay_s=delay_s)
        serving = served_verifier(lambda: verifier, directory, lambda: verifier.arena_fds)
    else:
        serving = served_drafter(lambda: FakeDrafter(delay_s=delay_s), directory)
    with serving:
        stop.wait()


if __name__ == "__main__":
    main()
