"""A client's streaming example as a process: all of them have the same options, exit codes and lines."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

_SECRETS = ("QSPEC_API_KEY",)


@dataclass(frozen=True, slots=True)
class Example:
    """One of the programs."""

    command: tuple[str, ...]

    def run(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        done = subprocess.run(
            [*self.command, *options], env=_environment(environment), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=60, check=False,
        )  # read as bytes: as text, Python would take a carriage return for a line feed
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextlib.contextmanager
    def started(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until the block ends, with pipes for its output."""
        process = subprocess.Popen(
            [*self.command, *options], env=_environment({}), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()


def refused(done: subprocess.CompletedProcess[str], *, code: int) -> str:
    """The one line on standard error that a failed run ended with."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: "), line
    return line


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _SECRETS} | more
