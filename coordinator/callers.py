"""Who asks: the key by which the queue is fair.

A gateway that asks for many names them in the call's metadata. A call without a name counts for the host that it comes
from, whatever its port. Names are believed: there is no authentication here.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.requests import id_problem
from qspec.errors import InvalidInput

CLIENT_ID_KEY = "qspec-client-id"
"""Metadata key of a client's name."""


def client_of(metadata: Iterable[tuple[str, str | bytes]], peer: str) -> str:
    """The key of a call's client; ``InvalidInput`` for a name that cannot be used.

    ``peer`` is gRPC's: ``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000``, ``unix:``.
    """
    for key, value in metadata:
        if key == CLIENT_ID_KEY:
            name = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if problem := id_problem(name):
                raise InvalidInput.field(f"metadata {CLIENT_ID_KEY}", problem)
            return f"id:{name}"
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
