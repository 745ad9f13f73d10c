"""PEM files are judged before gRPC has them: each fault is one line that names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from qspec.errors import InvalidInput
from qspec.rpc.certificates import check_time, is_open_to_all, read_authorities, read_identity
from tests.certificates import Authority, Pair


def encrypt(pair: Pair) -> None:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"secret")
    pair.key.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password))


FAULTS: dict[str, tuple[Callable[[Pair, Pair], object], str]] = {
    "missing": (lambda pair, _: pair.key.unlink(), "tls_key: {key} cannot be read: No such file or directory"),
    "a directory": (lambda pair, _: (pair.certificate.unlink(), pair.certificate.mkdir()),
                    "tls_cert: {certificate} cannot be read: Is a directory"),
    "another key": (lambda pair, other: pair.key.write_bytes(other.key.read_bytes()),
                    "tls_key: {key} is not the key of the certificate {certificate}"),
    "the wrong way round": (lambda pair, _: pair.certificate.write_bytes(pair.key.read_bytes()),
                            "tls_cert: {certificate} has no certificate in PEM form"),
    "no key": (lambda pair, _: pair.key.write_bytes(pair.certificate.read_bytes()),
               "tls_key: {key} has no private key in PEM form"),
    "encrypted": (lambda pair, _: encrypt(pair), "tls_key: {key} is encrypted: give one without a password"),
    "cut": (lambda pair, _: pair.key.write_text("-----BEGIN PRIVATE KEY-----\nMII\n"),
            "tls_cert: {certificate} and {key} cannot be used: "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_pair_that_cannot_be_used_is_one_line(name: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair, other = authority.sign("localhost"), authority.sign("localhost")
    assert read_identity(pair.certificate, pair.key).key == pair.key.read_bytes()
    spoil, message = FAULTS[name]
    spoil(pair, other)
    with pytest.raises(InvalidInput) as raised:
        read_identity(pair.certificate, pair.key)
    assert str(raised.value).startswith(message.format(key=pair.key, certificate=pair.certificate))
    assert "\n" not in str(raised.value)


def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, old = authority.sign("localhost"), authority.sign("localhost", expired=True)
    check_time(good.certificate, good.key, "tls_cert")
    with pytest.raises(InvalidInput, match=f"tls_cert: the certificate {old.certificate} has expired"):
        check_time(old.certificate, old.key, "tls_cert")


def test_authorities_are_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert read_authorities(authority.certificate, "client_ca") == authority.certificate.read_bytes()
    with pytest.raises(InvalidInput, match="client_ca: .*has no certificate in PEM form"):
        read_authorities(authority.sign("localhost").key, "client_ca")


def test_a_key_that_everybody_may_read_is_seen(tmp_path: Path) -> None:
    pair = Authority(tmp_path).sign("localhost")
    assert not is_open_to_all(pair.key)
    pair.key.chmod(0o644)
    assert is_open_to_all(pair.key)
