"""Who asks: the key by which the queue is fair.

A gateway that asks for many names them in the call's metadata. A call without a name counts for the name of its API key
where keys are asked for, else for the host that it comes from, whatever its port. Names are believed, but those behind
one API key are never those behind another.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.requests import id_problem
from qspec.errors import InvalidInput

CLIENT_ID_KEY = "qspec-client-id"
"""Metadata key of a client's name."""


def client_of(metadata: Iterable[tuple[str, str | bytes]], peer: str, key_name: str | None = None) -> str:
    """The key of a call's client; ``InvalidInput`` for a name that cannot be used.

    ``peer`` is gRPC's: ``ipv4:127.0.0.1:50000``, ``ipv6:[::1]:50000``, ``unix:``. ``key_name`` is the name of the
    call's API key, if it needed one.
    """
    prefix = "" if key_name is None else f"key:{key_name} "
    for key, value in metadata:
        if key == CLIENT_ID_KEY:
            name = value.decode("ascii", "replace") if isinstance(value, bytes) else value
            if problem := id_problem(name):
                raise InvalidInput.field(f"metadata {CLIENT_ID_KEY}", problem)
            return f"{prefix}id:{name}"
    if key_name is not None:
        return prefix.rstrip()
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
