"""Keys that clients show (``authorization: Bearer KEY``), and the file that has their hashes.

A key is drawn at random from 256 bits, so that its SHA-256 tells nothing about it and needs no salt and no slow hash;
words that people think of are too short to be taken. The file has a line ``NAME sha256:HEX`` for each key; who reads it
cannot call. Two lines may have one name, while a key is being replaced.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qspec.errors import FieldViolation, InvalidInput

AUTHORIZATION_KEY = "authorization"
"""Metadata key that carries an API key."""
MIN_KEY_LENGTH = 20
_LINE = re.compile(r"([!-~]{1,128})\s+sha256:([0-9a-f]{64})")
_VISIBLE = re.compile(r"[!-~]+")
_SCHEME = "bearer "
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that a server knows, by their hashes."""

    entries: tuple[tuple[str, bytes], ...]
    """Name and SHA-256 of each."""

    def name_of(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        """The name of the key that a call carries, None without one that is known.

        Takes as long for a wrong key as for a right one.
        """
        given = b""
        for name, value in metadata:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if name == AUTHORIZATION_KEY and text[:len(_SCHEME)].lower() == _SCHEME:
                given = _digest(text[len(_SCHEME):].strip())
        found = None
        for name, digest in self.entries:
            if hmac.compare_digest(digest, given):
                found = name
        return found


def bearer(key: str) -> tuple[str, str]:
    """The metadata that carries a key."""
    return AUTHORIZATION_KEY, f"Bearer {key}"


def new_key() -> str:
    """A key that nobody can guess."""
    return f"qspec-{secrets.token_urlsafe(32)}"


def key_problem(key: str) -> str:
    """What is wrong with a key that somebody chose; empty when nothing is."""
    if not _VISIBLE.fullmatch(key):
        return "must be visible ASCII characters without spaces"
    if len(key) < MIN_KEY_LENGTH:
        return f"must have at least {MIN_KEY_LENGTH} characters, got {len(key)}; hash-key without --stdin draws one"
    return ""


def key_line(name: str, key: str) -> str:
    """The line of the file for a key; ``InvalidInput`` on ``name`` or ``key``."""
    if problem := key_problem(key):
        raise InvalidInput.field("key", problem)
    line = f"{name} sha256:{_digest(key).hex()}"
    if not _LINE.fullmatch(line) or name.startswith("#"):
        raise InvalidInput.field("name", f"must be 1 to 128 visible ASCII characters, the first no #, got {name!r}")
    return line


def read_api_keys(path: Path) -> ApiKeys:
    """The keys of a file; ``InvalidInput`` on ``api_keys_file`` names each line that is none, without showing it."""
    field = "api_keys_file"
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidInput.field(field, f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput.field(field, f"{path} is not valid UTF-8") from None
    entries, violations = [], []
    for number, line in enumerate(map(str.strip, lines), 1):
        if match := _LINE.fullmatch(line):
            entries.append((match[1], bytes.fromhex(match[2])))
        elif line and not line.startswith("#"):
            violations.append(FieldViolation(field, (
                f"{path}, line {number}: write NAME sha256:HEX, as `python -m qspec hash-key NAME` does")))
    if not entries and not violations:
        violations.append(FieldViolation(field, f"{path} has no keys: `python -m qspec hash-key NAME` makes a line"))
    if violations:
        raise InvalidInput(*violations[:_MOST_SHOWN])
    return ApiKeys(tuple(entries))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
