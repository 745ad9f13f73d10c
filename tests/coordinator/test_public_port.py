"""Which ports are refused before anything is started, and that a program's own port does as it is told."""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from coordinator.public_port import PublicPort, add_port_arguments, public_port
from qspec.client import AsyncClient, Tls, TlsFailed, Unauthenticated
from qspec.errors import InvalidInput
from qspec.rpc.api_keys import key_line, new_key
from qspec.rpc.health import is_serving
from qspec.v1 import generation_pb2 as pb
from tests.certificates import Authority

CERTIFICATE, KEY = Path("cert.pem"), Path("key.pem")
OPEN = "0.0.0.0:50051"


@pytest.mark.parametrize("options", [
    {"listen": "127.0.0.1:0"}, {"listen": "localhost:1"}, {"listen": "[::1]:1"}, {"listen": "unix:/tmp/s"},
    {"listen": OPEN, "insecure": True}, {"listen": OPEN, "tls_cert": CERTIFICATE, "tls_key": KEY},
    {"listen": OPEN, "tls_cert": CERTIFICATE, "tls_key": KEY, "client_ca": CERTIFICATE, "health_listen": "0.0.0.0:2"},
])
def test_ports_that_may_be(options: dict[str, Any]) -> None:
    PublicPort(**options)


@pytest.mark.parametrize(("options", "field"), [
    ({"listen": OPEN}, "listen"), ({"listen": "[::]:1"}, "listen"), ({"listen": "qspec.example:1"}, "listen"),
    ({"listen": "127.example:1"}, "listen"), ({"listen": "nonsense"}, "listen"),
    ({"listen": OPEN, "tls_cert": CERTIFICATE}, "tls_key"), ({"listen": OPEN, "tls_key": KEY}, "tls_cert"),
    ({"listen": "127.0.0.1:1", "client_ca": CERTIFICATE}, "client_ca"),
    ({"listen": OPEN, "tls_cert": CERTIFICATE, "tls_key": KEY, "insecure": True}, "insecure"),
    ({"listen": "127.0.0.1:1", "health_listen": "127.0.0.1:1"}, "health_listen"),
    ({"listen": "127.0.0.1:1", "health_listen": "nonsense"}, "health_listen"),
])
def test_ports_that_may_not_be(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        PublicPort(**options)
    assert [each.field for each in raised.value.violations] == [field]
    assert "\n" not in str(raised.value)


def test_every_option_reaches_the_port(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(key_line("alice", new_key()), encoding="utf-8")
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen")
    add_port_arguments(parser)
    port = public_port(parser.parse_args([
        f"--listen={OPEN}", "--tls-cert=c", "--tls-key=k", "--client-ca=a", f"--api-keys-file={keys}",
        "--health-listen=0.0.0.0:2"]))
    assert (port.tls_cert, port.tls_key, port.client_ca, port.health_listen) == (
        Path("c"), Path("k"), Path("a"), "0.0.0.0:2")
    assert port.keys is not None and port.keys.current.entries[0][0] == "alice"
    access = port.access(lambda method, peer: None)
    assert access.credentials is not None and len(access.interceptors) == 1 and access.health_listen == "0.0.0.0:2"


def test_a_program_with_tls_and_keys(tmp_path: Path) -> None:
    """The real program, which waits for its workers: it says what it is to those who may ask."""
    authority, key = Authority(tmp_path), new_key()
    pair = authority.sign("localhost")
    (tmp_path / "keys.txt").write_text(key_line("alice", key), encoding="utf-8")
    health = f"unix:{tmp_path}/health.sock"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [
        sys.executable, "-m", "coordinator", f"--listen={address}", f"--verifier-address=unix:{tmp_path}/v.sock",
        f"--drafter-address=unix:{tmp_path}/d.sock", f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}",
        f"--api-keys-file={tmp_path}/keys.txt", f"--health-listen={health}", "--log-level=info"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "health.sock").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        asyncio.run(_ask(address, authority.certificate, key))
        assert not is_serving(health)  # its model is not there
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 0
        assert re.fullmatch((  # the one call without a key; what fails in the handshake is no call
            r"qspec.requests: request refused client=ipv[46]:\S+ method=/qspec.v1.GenerationService/GetServerInfo "
            r"reason=unauthenticated\n"), error)
    finally:
        process.kill()
        process.communicate()


async def _ask(address: str, ca: Path, key: str) -> None:
    async with AsyncClient(address, tls=Tls(ca=ca), api_key=key) as client:
        assert (await client.server_info(deadline_s=10)).state == pb.SERVER_STATE_LOADING
    async with AsyncClient(address, tls=Tls(ca=ca)) as client:
        with pytest.raises(Unauthenticated):
            await client.server_info(deadline_s=10)
    async with AsyncClient(address, api_key=key) as client:
        with pytest.raises(TlsFailed):
            await client.server_info(deadline_s=10)
