"""TLS of a client: which authorities it believes, and what it shows of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc

from qspec.errors import InvalidInput
from qspec.rpc.certificates import read_authorities, read_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """``Tls()`` believes the authorities that gRPC ships, which a public server's certificate is of."""

    ca: Path | str | None = None
    """Authorities to believe instead, PEM."""
    certificate: Path | str | None = None
    """The client's certificate, where the server demands one, PEM."""
    key: Path | str | None = None
    """Its key, PEM."""

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC connects with; ``InvalidInput`` on ``tls_ca``, ``tls_client_cert`` or ``tls_client_key``."""
        fields = ("tls_client_cert", "tls_client_key")
        if (self.certificate is None) != (self.key is None):
            missing, given = reversed(fields) if self.key is None else fields
            raise InvalidInput.field(missing, f"is missing: {given} needs it")
        authorities = None if self.ca is None else read_authorities(Path(self.ca), "tls_ca")
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(authorities)
        identity = read_identity(Path(self.certificate), Path(self.key), fields)
        return grpc.ssl_channel_credentials(authorities, identity.key, identity.certificate)
