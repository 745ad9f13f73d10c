"""The public port's options: TLS, client certificates, API keys; and the rule that plain text stays on this host.

Everything here is read and checked before gRPC is imported or anything is started.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.errors import FieldViolation, InvalidInput
from qspec.rpc.addresses import is_local, parse_address
from qspec.rpc.api_keys import ApiKeys, read_api_keys
from qspec.rpc.watched_files import WatchedFiles

if TYPE_CHECKING:
    from qspec.rpc.server import PortAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicPort:
    """Where and how the public service is reached."""

    listen: str
    """Its address."""
    tls_cert: Path | None = None
    """The server's certificate and what is between it and the authority, PEM."""
    tls_key: Path | None = None
    """Its key, PEM."""
    client_ca: Path | None = None
    """Authorities whose certificates clients must show."""
    keys: WatchedFiles[ApiKeys] | None = None
    """Keys of which clients must show one."""
    insecure: bool = False
    """Plain text for other hosts, too."""
    health_listen: str | None = None
    """Another address for health alone, in plain text."""

    def __post_init__(self) -> None:
        violations = [*_violations(self)]
        if violations:
            raise InvalidInput(*violations)

    def access(self, unauthenticated: Callable[[str, str], None]) -> PortAccess:
        """What the server is told of it; ``unauthenticated`` hears of calls without a key (``Authentication``)."""
        from qspec.rpc.authentication import Authentication  # late: gRPC reads an environment that is set first
        from qspec.rpc.server import PortAccess
        from qspec.rpc.server_tls import ServerTls

        tls = None
        if self.tls_cert is not None and self.tls_key is not None:
            tls = ServerTls(certificate=self.tls_cert, key=self.tls_key, client_ca=self.client_ca)
        return PortAccess(
            credentials=None if tls is None else tls.credentials,
            interceptors=() if self.keys is None else (Authentication(self.keys, unauthenticated),),
            health_listen=self.health_listen,
        )


def add_port_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of options."""
    add = parser.add_argument_group("public port").add_argument
    add("--tls-cert", type=Path, metavar="FILE", help="serve with TLS: this certificate and those above it, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    add("--client-ca", type=Path, metavar="FILE", help="refuse clients without a certificate of these authorities, PEM")
    add("--api-keys-file", type=Path, metavar="FILE", help=(
        "refuse calls without a key of this file (python -m qspec hash-key makes its lines); health is exempt"))
    add("--insecure", action="store_true", help=(
        "listen in plain text where other hosts can reach it; without TLS only loopback and Unix sockets are allowed"))
    add("--health-listen", metavar="ADDRESS", help=(
        "answer grpc.health.v1 here, too, in plain text: for probes, which speak no TLS"))


def public_port(args: argparse.Namespace) -> PublicPort:
    """The port that ``add_port_arguments`` and ``--listen`` describe; raises ``InvalidInput``."""
    path = args.api_keys_file
    return PublicPort(
        listen=args.listen, tls_cert=args.tls_cert, tls_key=args.tls_key, client_ca=args.client_ca,
        keys=None if path is None else WatchedFiles([path], lambda: read_api_keys(path)),
        insecure=args.insecure, health_listen=args.health_listen,
    )


def _violations(port: PublicPort) -> list[FieldViolation]:
    found = []
    tls = port.tls_cert is not None
    if tls != (port.tls_key is not None):
        missing, given = ("tls_key", "tls_cert") if tls else ("tls_cert", "tls_key")
        found.append(FieldViolation(missing, f"is missing: {given} needs it"))
    elif port.client_ca is not None and not tls:
        found.append(FieldViolation("client_ca", "needs TLS: give tls_cert and tls_key as well"))
    if tls and port.insecure:
        found.append(FieldViolation("insecure", "cannot be used with TLS: leave one of them out"))
    address = parse_address(port.listen, "listen")
    if not found and not (tls or port.insecure or is_local(address)):
        found.append(FieldViolation("listen", (
            f"other hosts can reach {address}, and would in plain text: give --tls-cert and --tls-key, or say "
            "--insecure where the network is trusted or something else brings TLS")))
    if port.health_listen is not None and parse_address(port.health_listen, "health_listen") == address:
        found.append(FieldViolation("health_listen", "must be another address than that of listen"))
    return found
