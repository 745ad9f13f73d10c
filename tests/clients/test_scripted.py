"""Each client's example against a server that stops, stalls, refuses, or is newer than the client; TLS and keys."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.certificates import Authority, Pair
from tests.clients.example import Example, refused
from tests.clients.scripted_server import scripted_server

pytestmark = pytest.mark.timeout(300)

RAW = ("--raw", "--prompt")


def test_server_that_goes_away_amid_the_text(example: Example) -> None:
    with scripted_server() as address:
        done = example.run("--address", address, *RAW, "die")
    assert done.stdout == "PIECE\n"
    assert f"{address} cannot be reached, or has gone away (UNAVAILABLE" in refused(done, code=1)


def test_text_that_ends_without_a_reason(example: Example, scripted: str) -> None:
    done = example.run("--address", scripted, *RAW, "nothing more")
    assert done.stdout == "PIECE\n"
    assert refused(done, code=1) == "error: DATA_LOSS: the server ended the text without a reason"


def test_deadline(example: Example, scripted: str) -> None:
    done = example.run("--address", scripted, *RAW, "stall", "--timeout", "0.8")
    assert done.stdout == "PIECE\n"
    assert refused(done, code=1).startswith("error: DEADLINE_EXCEEDED: ")


def test_full_queue_says_when_to_try_again(example: Example, scripted: str) -> None:
    done = example.run("--address", scripted, *RAW, "full")
    assert refused(done, code=1) == "error: RESOURCE_EXHAUSTED: the queue is full; try again in 1.5 s"


def test_fields_come_from_the_details(example: Example, scripted: str) -> None:
    done = example.run("--address", scripted, *RAW, "fields")
    assert refused(done, code=2) == "error: INVALID_ARGUMENT: größe: is 世界; stop[0]: is empty"


def test_older_server_does_not_know_the_call(example: Example) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        done = example.run("--address", f"localhost:{port}", *RAW, "x")
    finally:
        server.stop(None).wait()
    assert refused(done, code=1) == "error: UNIMPLEMENTED: Method not found!"


def test_interrupt_while_connecting(example: Example) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        mute.settimeout(20)
        with example.started("--address", f"127.0.0.1:{mute.getsockname()[1]}", *RAW, "x") as process:
            connection, _ = mute.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, b"interrupted\n")


def test_reason_of_a_newer_server(example: Example, scripted: str) -> None:
    done = example.run("--address", scripted, *RAW, "newer")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "PIECE!\n" and done.stderr.endswith("ended by 99\n")


def test_key_from_file_or_environment(example: Example, scripted: str, tmp_path: Path) -> None:
    def sent(*options: str, **environment: str) -> str:
        done = example.run("--address", scripted, *RAW, "metadata", *options, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    key_file = tmp_path / "key"
    key_file.write_text("from-file\n")
    assert sent() == "None|None"
    assert sent(QSPEC_API_KEY="from-environment") == "Bearer from-environment|None"
    assert sent("--api-key-file", str(key_file), QSPEC_API_KEY="from-environment") == "Bearer from-file|None"


def test_key_does_not_leave_the_machine_in_plain_text(example: Example) -> None:
    options = ("--address", "192.0.2.1:50051", "--prompt", "x")  # an address that documentation may use: nobody's
    assert "plain text" in refused(example.run(*options, QSPEC_API_KEY="k"), code=2)
    allowed = example.run(*options, "--insecure", "--timeout", "0.5", QSPEC_API_KEY="k")
    assert "plain text" not in refused(allowed, code=1)


@dataclass(frozen=True, slots=True)
class Identities:
    """Who is who: an authority, and two that it vouches for."""

    authority: Path
    server: Pair
    client: Pair


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    root = Authority(tmp_path_factory.mktemp("certificates"))
    return Identities(root.certificate, root.sign("localhost"), root.sign("somebody@localhost"))


@pytest.fixture(scope="module")
def with_tls(identities: Identities) -> Iterator[str]:
    with scripted_server(identities.server.key, identities.server.certificate) as address:
        yield address


@pytest.fixture(scope="module")
def with_mutual_tls(identities: Identities) -> Iterator[str]:
    with scripted_server(identities.server.key, identities.server.certificate, identities.authority) as address:
        yield address


def test_authority_is_checked(example: Example, with_tls: str, identities: Identities, tmp_path: Path) -> None:
    options = (*RAW, "metadata", "--address", with_tls)
    done = example.run(*options, "--tls-ca", str(identities.authority), QSPEC_API_KEY="k")
    assert (done.returncode, done.stdout) == (0, "Bearer k|None\n"), done.stderr
    foreign = Authority(tmp_path, "foreign")
    for wrong in (("--tls-ca", str(foreign.certificate)), ("--tls",), ()):
        assert "UNAVAILABLE" in refused(example.run(*options, *wrong), code=1)


def test_own_certificate_is_shown(example: Example, with_mutual_tls: str, identities: Identities) -> None:
    options = (*RAW, "metadata", "--address", with_mutual_tls, "--tls-ca", str(identities.authority))
    own = ("--tls-client-cert", str(identities.client.certificate), "--tls-client-key", str(identities.client.key))
    done = example.run(*options, *own)
    assert (done.returncode, done.stdout) == (0, "None|None\n"), done.stderr
    assert "UNAVAILABLE" in refused(example.run(*options), code=1)


def test_certificate_needs_its_key(example: Example, identities: Identities) -> None:
    options = (*RAW, "metadata", "--tls-client-cert", str(identities.client.certificate))
    assert "--tls-client-key" in refused(example.run(*options), code=2)
