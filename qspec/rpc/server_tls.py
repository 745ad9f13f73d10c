"""TLS of a server's port: certificates from files, read again when they change, and clients' certificates demanded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import grpc

from qspec.rpc.certificates import check_time, is_open_to_all, read_authorities, read_identity
from qspec.rpc.watched_files import WatchedFiles

_log = logging.getLogger("qspec.rpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The files of one port, PEM."""

    certificate: Path
    """The server's certificate, followed by those between it and the authority that clients know."""
    key: Path
    client_ca: Path | None = None
    """Authorities for clients; where they are given, a client without a certificate of theirs is refused."""

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC serves with; every handshake sees the files as they are then.

        Raises ``InvalidInput`` on ``tls_cert``, ``tls_key`` or ``client_ca``.
        """
        paths = [path for path in (self.certificate, self.key, self.client_ca) if path is not None]
        files = WatchedFiles(paths, self._read)
        given = [files.current]

        def changed() -> grpc.ServerCertificateConfiguration | None:
            newest = files.current
            if newest is given[0]:
                return None
            given[0] = newest
            return newest

        return grpc.dynamic_ssl_server_credentials(
            files.current, changed,  # type: ignore[arg-type]  # the stubs do not know of None: unchanged
            require_client_authentication=self.client_ca is not None)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        identity = read_identity(self.certificate, self.key)
        check_time(self.certificate, self.key, "tls_cert")
        if is_open_to_all(self.key):
            _log.warning("tls_key: every user of this host may read %s: chmod 600 it", self.key)
        authorities = None if self.client_ca is None else read_authorities(self.client_ca, "client_ca")
        return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], authorities)
