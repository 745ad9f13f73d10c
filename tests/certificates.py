"""Certificates for tests, made when they are asked for: an authority, and what it and others have signed."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import trustme

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates, and writes them below ``directory``."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory, self._name, self._made = directory, name, 0
        self._ca = trustme.CA()
        self.certificate = directory / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.certificate)

    def sign(self, *names: str, expired: bool = False) -> Pair:
        """A certificate for these names (an ``@`` makes it a person's), with a key that only its user may read."""
        self._made += 1
        signed = self._ca.issue_cert(*names, not_after=LONG_AGO if expired else None)
        stem = self._directory / f"{self._name}-{self._made}"
        pair = Pair(stem.with_suffix(".crt"), stem.with_suffix(".key"))
        pair.certificate.write_bytes(b"".join(each.bytes() for each in signed.cert_chain_pems))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(signed.private_key_pem.bytes())
        return pair
