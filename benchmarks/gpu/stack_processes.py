"""A stack whose workers this process starts: of a widened model, with MPS or without.

Workers and coordinator are the programs that users run. The coordinator is given the workers' sockets, so that which
model they load, and whether they share the GPU's context, is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from benchmarks.gpu.results_file import Tell
from coordinator.mps import mps_for_workers
from coordinator.supervisor import ChildProcess
from qspec.cli import stack_options
from qspec.client import AsyncClient
from qspec.client.retry import NEVER
from qspec.config import StackConfig
from qspec.errors import QspecError

WORKERS = ("verifier", "drafter")
WIDENED_WORKER = "benchmarks.gpu.widened_worker"
START_TIMEOUT_S = 120.0
_GRACE_S = 8.0
_LOOK_EVERY_S = 0.1


@contextlib.asynccontextmanager
async def serving_stack(config: StackConfig, factor: int, *, mps: bool, tell: Tell) -> AsyncIterator[AsyncClient]:
    """A client of a stack that serves; ``factor``: how many times as wide the model is. ``QspecError`` if it ends."""
    with contextlib.ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="qspec-bench-")))
        environment = exits.enter_context(mps_for_workers(directory / "mps", tell)) if mps else {}
        children = [
            exits.enter_context(_child(role, *_program(role, factor), directory, config, environment))
            for role in WORKERS]
        workers = [f"--{role}-address=unix:{directory / role}.sock" for role in WORKERS]
        coordinator = exits.enter_context(_child("coordinator", "coordinator", workers, directory, config, {}))
        children.append(coordinator)
        await asyncio.to_thread(_wait, children, coordinator)
        async with AsyncClient(f"unix:{directory / 'coordinator'}.sock", retry=NEVER) as client:
            yield client


def _program(role: str, factor: int) -> tuple[str, list[str]]:
    """Module and first arguments of a worker."""
    return (role, []) if factor == 1 else (WIDENED_WORKER, [role, str(factor)])


@contextlib.contextmanager
def _child(
    name: str, module: str, arguments: list[str], directory: Path, config: StackConfig, environment: dict[str, str]
) -> Iterator[ChildProcess]:
    process = (f"--listen=unix:{directory / name}.sock", f"--runtime-dir={directory}")
    child = ChildProcess(
        name, module, [*arguments, *process, *stack_options(config)], threading.Event().set, environment)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        child.close(_GRACE_S)


def _wait(children: list[ChildProcess], coordinator: ChildProcess) -> None:
    """Until the coordinator serves."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while coordinator.ready is None:
        for child in children:
            if child.ended:
                raise child.failure()
        if time.monotonic() > deadline:
            stages = "; ".join(f"{child.name}: {child.stage.text}" for child in children)
            raise QspecError(f"the stack did not serve within {START_TIMEOUT_S:g} s: {stages}")
        time.sleep(_LOOK_EVERY_S)
