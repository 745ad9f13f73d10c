"""The skeleton of all three servers.

A server answers from the moment it listens, and says through ``grpc.health.v1`` whether it can be used: NOT_SERVING
while its model loads, SERVING once ``prepare`` has returned, NOT_SERVING again as soon as it is told to stop, while the
calls in flight come to their end. Told a second time, it does not wait for them. Reflection and the error interceptor
come with it; a service brings its servicer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from qspec.errors import InvalidInput
from qspec.rpc.addresses import parse_address, refuse_occupied
from qspec.rpc.interceptor import ErrorInterceptor
from qspec.rpc.options import server_options

_State = health_pb2.HealthCheckResponse
HURRIED_GRACE_S = 0.2
"""Seconds in which calls in flight get their status when a server is told twice to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One gRPC service: its full name (``qspec.v1.VerifierService``) and what adds its servicer to a server."""

    name: str
    register: Callable[[grpc.aio.Server], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortAccess:
    """Who gets in at a server's port, and how."""

    credentials: Callable[[], grpc.ServerCredentials] | None = None
    """Makes those of TLS when the server starts; plain text without. Raises ``InvalidInput``."""
    interceptors: tuple[grpc.aio.ServerInterceptor[Any, Any], ...] = ()
    """Asked before anything of a call is read."""
    health_listen: str | None = None
    """Another address, in plain text and for ``grpc.health.v1`` alone: probes speak no TLS and have no certificates."""


class RpcServer:
    """Services at one address, with health and reflection. ``public``: anybody may call them, see
    ``qspec.rpc.errors.to_status`` and ``qspec.rpc.options``.

    ``access`` says who gets in; anybody without it, in plain text.
    """

    def __init__(
        self, services: Sequence[Service], *, public: bool = False, access: PortAccess = PortAccess()
    ) -> None:
        self._names = [service.name for service in services]
        self._access = access
        interceptors = [*access.interceptors, ErrorInterceptor(public=public)]
        self._server = grpc.aio.server(interceptors=interceptors, options=server_options(public=public))
        self._health = HealthServicer()
        self._probed = None
        if access.health_listen is not None:
            self._probed = grpc.aio.server(options=server_options(public=True))
        for server in filter(None, (self._server, self._probed)):
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )
        for service in services:
            service.register(self._server)

    async def start(self, listen: str) -> str:
        """Listen, NOT_SERVING; returns the address with the port that port 0 became.

        Raises ``InvalidInput`` on ``listen`` for an address that cannot be read or is in use.
        """
        credentials = self._access.credentials() if self._access.credentials is not None else None
        await self._set_health(_State.NOT_SERVING)
        address = _bind(self._server, listen, "listen", credentials)
        if self._probed is not None and self._access.health_listen is not None:
            _bind(self._probed, self._access.health_listen, "health_listen", None)
            await self._probed.start()
        await self._server.start()
        return address

    async def set_serving(self) -> None:
        """Answer SERVING from now on."""
        await self._set_health(_State.SERVING)

    async def stop(
        self, grace_s: float, drain: Callable[[], Awaitable[None]] | None = None, hurry: asyncio.Event | None = None
    ) -> None:
        """NOT_SERVING at once; then ``drain``; then no new calls, and ``grace_s`` seconds for those in flight.

        ``hurry`` cancels ``drain``, and leaves ``HURRIED_GRACE_S`` for the statuses of calls in flight.
        """
        await self._health.enter_graceful_shutdown()
        if drain is not None:
            await _unless(hurry, drain())
        await self._server.stop(HURRIED_GRACE_S if hurry is not None and hurry.is_set() else grace_s)
        if self._probed is not None:
            await self._probed.stop(0)

    async def _set_health(self, state: int) -> None:
        for name in ("", *self._names):
            await self._health.set(name, state)


def _bind(server: grpc.aio.Server, listen: str, field: str, credentials: grpc.ServerCredentials | None) -> str:
    """Make ``server`` listen; returns the address with its port. Raises ``InvalidInput`` on ``field``."""
    address = parse_address(listen, field)
    refuse_occupied(address, field)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise InvalidInput.field(field, f"cannot listen at {address}: in use, or not an address of this host")
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


async def _unless(event: asyncio.Event | None, work: Awaitable[None]) -> None:
    """Do ``work``, or cancel it when ``event`` comes first."""
    working = asyncio.ensure_future(work)
    interrupting = asyncio.ensure_future((event or asyncio.Event()).wait())
    try:
        await asyncio.wait((working, interrupting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        interrupting.cancel()
        working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working


async def serve(
    services: Sequence[Service],
    listen: str,
    *,
    prepare: Callable[[], Awaitable[None]],
    on_serving: Callable[[str], None],
    drain: Callable[[], Awaitable[None]] | None = None,
    stop: asyncio.Event | None = None,
    grace_s: float = 5.0,
    public: bool = False,
    access: PortAccess = PortAccess(),
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; a second signal cancels ``drain``.

    Args:
        services: what to serve.
        listen: ``unix:PATH`` or ``HOST:PORT`` (port 0: any).
        prepare: loads and warms up while the server already answers; SERVING when it returns. What it raises is raised
            here, after the server has stopped.
        on_serving: called once with the address listened at.
        drain: ends what would not end by itself (long-lived streams), or waits for what should.
        stop: ends the server from inside the process.
        grace_s: seconds for calls in flight after that.
        public: see ``qspec.rpc.errors.to_status``.
        access: who gets in.
    """
    stopping, hurry = stop or asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    server = RpcServer(services, public=public, access=access)
    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGINT):  # before anybody can know that there is somebody to tell
            with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: signals are the caller's
                loop.add_signal_handler(number, lambda: (hurry if stopping.is_set() else stopping).set())
                handlers.callback(loop.remove_signal_handler, number)
        address = await server.start(listen)
        preparing = asyncio.ensure_future(prepare())
        waiting = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((preparing, waiting), return_when=asyncio.FIRST_COMPLETED)
            if preparing.done():
                preparing.result()
                if not stopping.is_set():
                    await server.set_serving()
                    on_serving(address)
                await waiting
        finally:
            for task in (preparing, waiting):
                task.cancel()
            await asyncio.gather(preparing, waiting, return_exceptions=True)
            await server.stop(grace_s, drain, hurry)
