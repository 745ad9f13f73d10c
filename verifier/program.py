"""The verifier's server program: loads the engine, hands out its arena, serves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from qspec.interfaces import Verifier
from qspec.memory.fd_passing import FdServer
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import serve
from qspec.worker_process import WorkerProcess
from verifier.service import VerifierServicer

if TYPE_CHECKING:
    from qspec.engine.verifier import LocalVerifier

ARENA_SOCKET = "arena.sock"
"""Name, in the runtime directory, of the socket where the arena's descriptors are handed out."""


def load_verifier(process: WorkerProcess, epoch: int) -> LocalVerifier:
    """The engine of the model that the process was given."""
    from qspec.engine.verifier import LocalVerifier  # imports torch: in the thread that will use it

    return LocalVerifier.load(process.config, progress=process.status.stage, epoch=epoch)


async def serve_verifier(
    process: WorkerProcess, *, epoch: int, load_engine: Callable[[WorkerProcess, int], LocalVerifier] = load_verifier
) -> None:
    """Serve until the process is told to stop; ``load_engine`` is called in the engine's own thread."""
    socket_path = process.runtime_dir / ARENA_SOCKET
    fd_servers: list[FdServer] = []

    def load() -> Verifier:
        verifier = load_engine(process, epoch)
        fd_servers.append(FdServer(socket_path, *verifier.arena_fds))
        verifier.prepare_constraints()  # beside whatever the coordinator still waits for
        return verifier

    engine = EngineThread(load, name="verifier-engine")
    servicer = VerifierServicer(engine, arena_reference=f"unix:{socket_path}")
    try:
        await serve(
            [servicer.service], process.listen, prepare=functools.partial(process.prepare, engine.loaded),
            drain=servicer.streams.drain, grace_s=1.0, on_serving=functools.partial(process.status.ready, epoch=epoch),
        )
    finally:
        for fd_server in fd_servers:
            fd_server.close()
        await engine.close()
