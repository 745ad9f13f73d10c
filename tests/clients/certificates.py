"""Certificates for tests, by the ``openssl`` program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.clients.tools import run


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key, in PEM files."""

    certificate: Path
    key: Path


def authority(directory: Path, name: str) -> Identity:
    """An authority of its own."""
    identity = Identity(directory / f"{name}.pem", directory / f"{name}.key")
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-keyout", str(identity.key), "-out", str(identity.certificate)], directory)
    return identity


def signed(directory: Path, name: str, by: Identity) -> Identity:
    """A certificate for ``localhost`` that ``by`` has signed."""
    identity = Identity(directory / f"{name}.pem", directory / f"{name}.key")
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE",
         "-CA", str(by.certificate), "-CAkey", str(by.key),
         "-keyout", str(identity.key), "-out", str(identity.certificate)], directory)
    return identity
