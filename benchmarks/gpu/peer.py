"""Processes that share a GPU, as a benchmark or a test holds them (``benchmarks.gpu.peer_program``)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from benchmarks.environment import ROOT

ANSWER_TIMEOUT_S = 120.0


class PeerRefused(Exception):
    """A peer answered with an error: ``kind`` is its class."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {text}")


class Peer:
    """A context manager: one process. ``environment`` is added to this one's own.

    ``own_pid_namespace``: it is PID 1 of a namespace of its own, as in a container; takes root and ``unshare``.
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, *, channel: tuple[int, int] | None = None,
        own_pid_namespace: bool = False,
    ) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.peer_program"]
        if channel is not None:
            command.append(f"--channel={channel[0]},{channel[1]}")
        if own_pid_namespace:
            unshare = shutil.which("unshare")
            assert unshare is not None
            command = [unshare, "--pid", "--fork", "--kill-child", *command]
        self._unread = b""
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, pass_fds=channel or (),
            env={**os.environ, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """The process's number (that of ``unshare``, in a namespace of its own)."""
        return self._process.pid

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done (a method of ``PeerProgram``) and wait for what came of it. ``PeerRefused``."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """Have something done; ``answer`` waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of the latest ``tell``. ``PeerRefused``; ``TimeoutError``; ``ConnectionError`` when it is gone."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise ConnectionError(f"the process ended with exit code {self._process.wait()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerRefused(answer["error"], answer["text"])
        return answer

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def peers(environment: Mapping[str, str] | None = None) -> Iterator[tuple[Peer, Peer]]:
    """Two processes with pipes between them."""
    there_reading, here_writing = os.pipe()
    here_reading, there_writing = os.pipe()
    fds = (there_reading, here_writing, here_reading, there_writing)
    with contextlib.ExitStack() as stack:
        try:
            first = stack.enter_context(Peer(environment, channel=(here_reading, here_writing)))
            second = stack.enter_context(Peer(environment, channel=(there_reading, there_writing)))
        finally:
            for fd in fds:
                os.close(fd)
        yield first, second


def take_turns(first: Peer, second: Peer, do: str, **arguments: Any) -> list[float]:
    """Have both do something by turns; microseconds of a round, once per repeat. ``first_…`` is for the first alone."""
    common = {name: value for name, value in arguments.items() if not name.startswith(("first_", "second_"))}
    own = [
        {name.removeprefix(prefix): value for name, value in arguments.items() if name.startswith(prefix)}
        for prefix in ("first_", "second_")
    ]
    second.tell(do, lead=False, **common, **own[1])
    first.tell(do, lead=True, **common, **own[0])
    times: list[float] = first.answer()["us"]
    second.answer()
    return times
