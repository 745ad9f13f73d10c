"""A worker's program around a fake: ``python -m tests.coordinator.fake_process`` with a worker's options.

The role is the socket's name. ``QSPEC_FAKE_<ROLE>`` makes it misbehave: ``refuse`` (a deliberate error), ``crash``
(ends without a word), ``slow`` (never ready), or the seconds that each batch takes.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from drafter.service import DrafterServicer
from qspec.cli import add_process_arguments, add_stack_arguments, run_program, stack_config
from qspec.errors import InvalidInput
from qspec.interfaces import Drafter, Verifier
from qspec.memory.fd_passing import FdServer
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import serve
from qspec.worker_process import WorkerProcess
from tests.fakes import FakeDrafter, FakeVerifier
from verifier.service import VerifierServicer


async def serve_fake_verifier(process: WorkerProcess, delay_s: float) -> None:
    """As ``verifier.program``."""
    arena_socket = process.runtime_dir / "arena.sock"
    servers: list[FdServer] = []

    def load() -> Verifier:
        verifier = FakeVerifier(delay_s=delay_s, epoch=time.time_ns())
        servers.append(FdServer(arena_socket, *verifier.arena_fds))
        return verifier

    engine = EngineThread(load, name="verifier-engine")
    servicer = VerifierServicer(engine, arena_reference=f"unix:{arena_socket}")
    await serve([servicer.service], process.listen, prepare=engine.loaded, drain=servicer.streams.drain,
                on_serving=process.status.ready, grace_s=0.5)
    for server in servers:
        server.close()
    await engine.close()


async def serve_fake_drafter(process: WorkerProcess, delay_s: float) -> None:
    """As ``drafter.program``."""
    def load() -> Drafter:
        return FakeDrafter(delay_s=delay_s)

    engine = EngineThread(load, name="drafter-engine")
    servicer = DrafterServicer(engine)
    await serve([servicer.service], process.listen, prepare=engine.loaded, drain=servicer.streams.drain,
                on_serving=process.status.ready, grace_s=0.5)
    await engine.close()


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    add_process_arguments(parser)
    add_stack_arguments(parser)
    args = parser.parse_args()
    process = WorkerProcess.start(args, stack_config(args))
    role = Path(args.listen).stem
    behaviour = os.environ.get(f"QSPEC_FAKE_{role.upper()}", "0")
    process.status.stage("loading", 0.5)
    if behaviour == "crash":
        return 7
    if behaviour == "slow":
        time.sleep(60)
    delay_s = 0.0 if behaviour == "refuse" else float(behaviour)

    async def program() -> None:
        if behaviour == "refuse":
            raise InvalidInput.field("model", "refused by the test")
        await (serve_fake_verifier if role == "verifier" else serve_fake_drafter)(process, delay_s)

    return process.run(program)


if __name__ == "__main__":
    run_program(main)
