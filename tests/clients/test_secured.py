"""Each client's example against a whole server with TLS, client certificates and API keys: who gets in, and who not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from qspec.rpc.api_keys import key_line, new_key
from tests.certificates import Authority, Pair
from tests.clients.example import Example, refused
from tests.clients.live_server import served_program

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True)
class Secured:
    """A server, and what it and its clients show."""

    address: str
    authority: Authority
    client: Pair
    key: str

    def options(self, ca: Path, client: Pair) -> list[str]:
        """The example's, but for the key."""
        return [
            "--address", self.address, "--prompt", "hello", "--max-tokens", "5", "--tls-ca", str(ca),
            "--tls-client-cert", str(client.certificate), "--tls-client-key", str(client.key),
        ]

    @property
    def right(self) -> list[str]:
        """What lets a client with a key in."""
        return self.options(self.authority.certificate, self.client)


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secured")
    authority, key = Authority(directory), new_key()
    own, client = authority.sign("localhost"), authority.sign("somebody@localhost")
    (directory / "keys").write_text(key_line("somebody", key) + "\n")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    channel = grpc.secure_channel(address, grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(
            authority.certificate.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes()),
        grpc.access_token_call_credentials(key)))
    options = [
        "--listen", address, "--tls-cert", str(own.certificate), "--tls-key", str(own.key),
        "--client-ca", str(authority.certificate), "--api-keys-file", str(directory / "keys"),
    ]
    with channel, served_program(directory, channel, *options):
        yield Secured(address, authority, client, key)


def test_certificate_and_key_let_in(example: Example, secured: Secured) -> None:
    done = example.run(*secured.right, QSPEC_API_KEY=secured.key)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_wrong_key_or_none_is_unauthenticated(example: Example, secured: Secured) -> None:
    for environment in ({"QSPEC_API_KEY": new_key()}, {}):
        assert "UNAUTHENTICATED: " in refused(example.run(*secured.right, **environment), code=1)


def test_wrong_certificates_are_unavailable(example: Example, secured: Secured, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    for options in (
        secured.options(stranger.certificate, secured.client),
        secured.options(secured.authority.certificate, stranger.sign("somebody@localhost")),
        secured.options(secured.authority.certificate, secured.authority.sign("somebody@localhost", expired=True)),
    ):
        line = refused(example.run(*options, QSPEC_API_KEY=secured.key), code=1)
        assert f"{secured.address} cannot be reached, or has gone away (UNAVAILABLE: " in line
