"""Addresses of services: ``unix:PATH`` and ``HOST:PORT``, read in one place for servers and clients."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from qspec.errors import InvalidInput
from qspec.socket_path import check_socket_path, check_socket_place


def parse_address(address: str, field: str) -> str:
    """The address as gRPC takes it; ``InvalidInput`` on ``field`` if it is neither ``unix:PATH`` nor ``HOST:PORT``."""
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:").removeprefix("//"))
        if not path.name:
            raise InvalidInput.field(field, f"{address!r} names no socket; write unix:/path/to/socket")
        check_socket_path(path, field)
        return f"unix:{path}"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput.field(field, f"{address!r} is no address; write HOST:PORT or unix:/path/to/socket")
    return address


def is_local(address: str) -> bool:
    """Whether a (parsed) address is a Unix socket or of the loopback interface: nothing leaves this host."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may resolve to anything
        return False


def refuse_occupied(address: str, field: str) -> None:
    """Raise ``InvalidInput`` when somebody listens at this (parsed) address, and make way where a dead socket lies.

    gRPC itself replaces an existing Unix socket, alive or not, and so would take another server's clients away.
    """
    if not address.startswith("unix:"):
        return  # binding tells
    path = Path(address.removeprefix("unix:"))
    check_socket_place(path, field)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise InvalidInput.field(field, f"{address} is in use by another server; stop it or choose another address")
