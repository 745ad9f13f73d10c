"""The client as a user runs it: a process, its output, and what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS = REPOSITORY / "benchmarks" / "prompts.jsonl"
TIMEOUT_S = 240.0


def command(*arguments: str) -> list[str]:
    """The client's command line."""
    return [sys.executable, "-m", "coordinator.client", *arguments]


def run_client(*arguments: str, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run the client to its end."""
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False
    )


def answers(*arguments: str, timeout: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """Run the client with ``--json``; one object per prompt."""
    done = run_client(*arguments, "--json", timeout=timeout)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@dataclass(frozen=True)
class Footprint:
    """What a stack has outside its own memory: processes, the runtime directory, shared memory files."""

    processes: tuple[psutil.Process, ...]
    directory: Path | None

    def alive(self) -> list[psutil.Process]:
        """Processes that still run (zombies do not)."""
        return [p for p in self.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def role(self, module: str) -> psutil.Process:
        """The process of ``python -m module``."""
        return next(p for p in self.alive() if module_of(p) == module)


def module_of(process: psutil.Process) -> str | None:
    """The module that a process runs, None when it does not run one or has ended."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return None
    return line[line.index("-m") + 1] if "-m" in line[:-1] else None


def footprint(client: psutil.Process | subprocess.Popen[str]) -> Footprint:
    """Everything that belongs to a running client's private stack."""
    root = client if isinstance(client, psutil.Process) else psutil.Process(client.pid)
    processes = tuple(root.children(recursive=True))
    directories = {
        Path(argument.split("=", 1)[1])
        for process in processes
        for argument in process.cmdline()
        if argument.startswith("--runtime-dir=")
    }
    return Footprint(processes, next(iter(directories), None))


def shared_memory_files() -> set[str]:
    """Names in /dev/shm."""
    directory = Path("/dev/shm")
    return {file.name for file in directory.iterdir()} if directory.is_dir() else set()


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until ``condition`` holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def wait_until_serving(stub: pb_grpc.GenerationServiceStub, process: subprocess.Popen[str]) -> None:
    """Ask a server until it says that it serves; fails at once, with what it wrote, when it has ended."""
    def serving() -> bool:
        assert process.poll() is None, f"the server ended: {process.stderr.read() if process.stderr else process.args}"
        try:
            return bool(stub.GetServerInfo(pb.GetServerInfoRequest()).state == pb.SERVER_STATE_SERVING)
        except grpc.RpcError:
            return False

    wait_until(serving, 90, "the server serves")


class StreamingClient:
    """A running client, read a little at a time."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._errors = directory / "stderr"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                command(*options), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> StreamingClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def read(self, characters: int = -1) -> str:
        """The next characters of the text; by default the whole rest of it."""
        assert self.process.stdout is not None
        return self.process.stdout.read(characters)

    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._errors.read_text()
