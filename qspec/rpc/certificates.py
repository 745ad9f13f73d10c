"""PEM files of one end of a TLS connection, read and checked before gRPC sees them.

gRPC takes a pair that does not fit, or a certificate that has expired, without a word, and fails every handshake
later. Python's own ``ssl`` says what is wrong: a pair is loaded by it, and a certificate's time is judged by a
handshake in memory whose one end trusts just this certificate.
"""

from __future__ import annotations

import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from qspec.errors import InvalidInput

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_OUT_OF_TIME = {9: "is not valid yet", 10: "has expired"}
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What one end shows, and proves with: PEM."""

    certificate: bytes
    """Its own certificate first, then those between it and the authority."""
    key: bytes


def read_identity(certificate: Path, key: Path, fields: tuple[str, str] = ("tls_cert", "tls_key")) -> Identity:
    """A certificate and its key; ``InvalidInput`` on one of ``fields`` for files that cannot be read or do not fit."""
    identity = Identity(_read(certificate, fields[0]), _read(key, fields[1]))
    if not _CERTIFICATE.search(identity.certificate):
        raise InvalidInput.field(fields[0], f"{certificate} has no certificate in PEM form")
    if b"PRIVATE KEY-----" not in identity.key:
        raise InvalidInput.field(fields[1], f"{key} has no private key in PEM form")
    if b"ENCRYPTED" in identity.key:
        raise InvalidInput.field(fields[1], f"{key} is encrypted: give one without a password")
    try:
        _server_context(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InvalidInput.field(fields[1], f"{key} is not the key of the certificate {certificate}") from None
        raise InvalidInput.field(
            fields[0], f"{certificate} and {key} cannot be used: {error.reason or error.strerror}") from None
    return identity


def read_authorities(path: Path, field: str) -> bytes:
    """Certificates of authorities, PEM; ``InvalidInput`` on ``field``."""
    pem = _read(path, field)
    if not _CERTIFICATE.search(pem):
        raise InvalidInput.field(field, f"{path} has no certificate in PEM form")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise InvalidInput.field(field, f"{path} cannot be used: {error.reason or error.strerror}") from None
    return pem


def check_time(certificate: Path, key: Path, field: str) -> None:
    """``InvalidInput`` on ``field`` for a server's certificate whose time has not come, or is over."""
    first = _CERTIFICATE.search(_read(certificate, field))
    if first is None:
        raise InvalidInput.field(field, f"{certificate} has no certificate in PEM form")
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cadata=first[0].decode("ascii"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = _server_context(certificate, key).wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server)
    for end in (client, server, client):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if problem := _OUT_OF_TIME.get(error.verify_code):
                raise InvalidInput.field(field, f"the certificate {certificate} {problem}") from None
            return  # whatever else a client may think of it
        except ssl.SSLError:  # what clients will say, too
            return


def is_open_to_all(path: Path) -> bool:
    """Whether every user of this host may read the file."""
    return bool(path.stat().st_mode & stat.S_IROTH)


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key, password="")  # never ask at the terminal
    return context


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput.field(field, f"{path} cannot be read: {error.strerror}") from None
