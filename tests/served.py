"""The real servicers around any engine, on a Unix socket, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from drafter.service import DrafterServicer
from qspec.interfaces import Drafter, Verifier
from qspec.memory.fd_passing import FdServer
from qspec.rpc.engine_thread import EngineThread
from qspec.rpc.server import serve
from verifier.service import VerifierServicer

_START_S = 20.0


@contextlib.contextmanager
def served_verifier(
    load: Callable[[], Verifier], directory: Path, arena_fds: Callable[[], Sequence[int]]
) -> Iterator[str]:
    """Serve the verifier that ``load`` gives; ``arena_fds`` is called after loading. Yields the address."""
    arena_socket = directory / "arena.sock"

    async def run(stop: asyncio.Event, on_serving: Callable[[str], None]) -> None:
        engine = EngineThread(load, name="verifier-engine")
        servicer = VerifierServicer(engine, arena_reference=f"unix:{arena_socket}")
        await engine.loaded()
        fd_server = FdServer(arena_socket, *arena_fds())
        try:
            await serve(
                [servicer.service], f"unix:{directory / 'verifier.sock'}", prepare=engine.loaded,
                on_serving=on_serving, drain=servicer.streams.drain, stop=stop, grace_s=0.5,
            )
        finally:
            fd_server.close()
            await engine.close()

    with _in_thread(run) as address:
        yield address


@contextlib.contextmanager
def served_drafter(load: Callable[[], Drafter], directory: Path) -> Iterator[str]:
    """Serve the drafter that ``load`` gives. Yields the address."""

    async def run(stop: asyncio.Event, on_serving: Callable[[str], None]) -> None:
        engine = EngineThread(load, name="drafter-engine")
        servicer = DrafterServicer(engine)
        try:
            await serve(
                [servicer.service], f"unix:{directory / 'drafter.sock'}", prepare=engine.loaded,
                on_serving=on_serving, drain=servicer.streams.drain, stop=stop, grace_s=0.5,
            )
        finally:
            await engine.close()

    with _in_thread(run) as address:
        yield address


@contextlib.contextmanager
def _in_thread(run: Callable[[asyncio.Event, Callable[[str], None]], Awaitable[None]]) -> Iterator[str]:
    """Run a server's coroutine in an event loop of its own until the block ends; what it raises is raised here."""
    address: Future[str] = Future()
    stops: list[Callable[[], object]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        await run(stop, address.set_result)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001  raised in the test's thread
            failures.append(error)
            if not address.done():
                address.set_exception(error)

    thread = threading.Thread(target=work, name="server")
    thread.start()
    try:
        yield address.result(_START_S)
    finally:
        for stop_server in stops:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                stop_server()
        thread.join(_START_S)
    if failures:
        raise failures[0]
