"""The metrics' own port, in a thread of its own: it answers while the server loads, drains, or has too much to do.

It speaks HTTP without TLS and without tokens, and tells nothing of any request but counts and times. It has no part in
serving: a scraper that hangs costs a thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from coordinator.metrics.collector import StackCollector
from coordinator.serving import Serving
from qspec.errors import InvalidInput
from qspec.rpc.addresses import parse_address

FIELD = "metrics_listen"


def metrics_registry(serving: Serving) -> CollectorRegistry:
    """The metrics of ``docs/metrics.md``, and the process's own (``process_…``)."""
    registry = CollectorRegistry()
    registry.register(StackCollector(serving))
    ProcessCollector(registry=registry)
    return registry


@contextlib.contextmanager
def metrics_endpoint(listen: str | None, serving: Serving) -> Iterator[str | None]:
    """Serve them at ``http://HOST:PORT/metrics`` while entered; yields the address, None without ``listen``.

    Raises ``InvalidInput`` on ``metrics_listen`` for an address that cannot be read or listened at.
    """
    if listen is None:
        yield None
        return
    host, port = check_metrics_listen(listen)
    try:
        server, thread = start_http_server(port, host, metrics_registry(serving))
    except OSError as error:
        raise InvalidInput.field(
            FIELD, f"cannot listen at {listen}: {error.strerror or error}; choose another port") from error
    try:
        yield f"{listen.rpartition(':')[0]}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_metrics_listen(listen: str) -> tuple[str, int]:
    """Host and port; ``InvalidInput`` for anything else."""
    if listen.startswith("unix:"):
        raise InvalidInput.field(FIELD, f"{listen!r} is a socket, and metrics are scraped over HTTP; write HOST:PORT")
    host, _, port = parse_address(listen, FIELD).rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
