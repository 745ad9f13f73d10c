"""The drafter's server program: loads the engine and serves; a verifier's arena comes with ``Attach``."""

from __future__ import annotations

import functools
from collections.abc import Callable

from drafter.service import DrafterServicer
from qspec.interfaces import Drafter
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import serve
from qspec.worker_process import WorkerProcess


def load_drafter(process: WorkerProcess) -> Drafter:
    """The engine of the model that the process was given."""
    from qspec.engine.drafter import LocalDrafter  # imports torch: in the thread that will use it

    return LocalDrafter.load(process.config, progress=process.status.stage)


async def serve_drafter(
    process: WorkerProcess, *, load_engine: Callable[[WorkerProcess], Drafter] = load_drafter
) -> None:
    """Serve until the process is told to stop; ``load_engine`` is called in the engine's own thread."""
    engine = EngineThread(lambda: load_engine(process), name="drafter-engine")
    servicer = DrafterServicer(engine)
    try:
        await serve(
            [servicer.service], process.listen, prepare=functools.partial(process.prepare, engine.loaded),
            drain=servicer.streams.drain, grace_s=1.0, on_serving=process.status.ready,
        )
    finally:
        await engine.close()
