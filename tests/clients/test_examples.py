"""Each client's example against a whole server: the text, cancelling, and what bad input answers."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.clients.example import Example, refused
from tests.clients.live_server import running
from tests.e2e.client import answers, wait_until

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("form", ["chat", "raw"])
def test_text_is_that_of_the_python_client_for_the_same_seed(example: Example, server: str, form: str) -> None:
    options = [
        "--address", server, "--prompt", "Grüße, 世界 🙂", "--max-tokens", "40", "--temperature", "0.9",
        *(["--raw"] if form == "raw" else []),
    ]
    (seeded, other) = (example.run(*options, "--seed", seed) for seed in ("0", str(2**64 - 1)))
    for done, seed in ((seeded, "0"), (other, str(2**64 - 1))):
        (expected,) = answers(*options, "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert done.stdout.removesuffix("\n") == expected["text"].removesuffix("\n")
    assert seeded.stdout != other.stdout
    assert re.search(r"^\d+ tokens, [\d.]+ tokens/s, ended by (length|end of sequence)$", seeded.stderr, re.MULTILINE)


def test_interrupt_frees_the_slot(example: Example, server: str) -> None:
    with example.started("--address", server, "--prompt", "hello", "--max-tokens", "8000") as process:
        wait_until(lambda: running(server) == 1, 20, "the request runs")
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        wait_until(lambda: running(server) == 0, 5, "the slot is free")
    assert (process.returncode, errors) == (130, b"interrupted\n")


def test_text_is_streamed_as_it_is_decided(example: Example, scripted: str) -> None:
    with example.started("--address", scripted, "--prompt", "stall", "--raw") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"PIECE"  # while the server goes on for 20 s
        assert process.poll() is None


def test_bad_fields_are_named(example: Example, server: str) -> None:
    done = example.run("--address", server, "--prompt", "x", "--max-tokens", "0", "--temperature", "-1")
    line = refused(done, code=2)
    assert line.startswith("error: INVALID_ARGUMENT: ")
    assert "max_tokens: must be at least 1" in line and "temperature: must be" in line


@pytest.mark.parametrize(("options", "named"), [
    (["--prompt", ""], "--prompt"),
    ([], "--prompt"),
    (["--prompt", "x", "--max-tokens", "-1"], "max-tokens"),
    (["--prompt", "x", "--max-tokens", "4294967296"], "max-tokens"),
    (["--prompt", "x", "--seed", "18446744073709551616"], "seed"),
    (["--prompt", "x", "--seed", "1.5"], "seed"),
    (["--prompt", "x", "--temperature", "warm"], "temperature"),
    (["--prompt", "x", "--timeout", "0"], "timeout"),
    (["--prompt", "x", "--timeout", "nan"], "timeout"),
    (["--prompt", "x", "--no-such-option"], "no-such-option"),
    (["--prompt", "x", "more"], "more"),
    (["--prompt", "x", "--address", "nowhere"], "nowhere"),
    (["--prompt", "x", "--api-key-file", "/no/such/file"], "/no/such/file"),
    (["--prompt", "x", "--tls-ca", "/no/such/file"], "/no/such/file"),
])
def test_command_line_that_cannot_be_read_is_one_line(example: Example, options: list[str], named: str) -> None:
    assert named in refused(example.run(*options), code=2)


def test_help_names_every_option(example: Example) -> None:
    done = example.run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for option in ("address", "prompt", "max-tokens", "seed", "timeout", "tls-ca", "tls-client-cert", "tls-client-key",
                   "api-key-file"):
        assert f"-{option}" in done.stdout


def test_nobody_listens(example: Example, tmp_path: Path) -> None:
    for address in ("127.0.0.1:1", f"unix:{tmp_path}/none.sock"):
        line = refused(example.run("--address", address, "--prompt", "x"), code=1)
        assert f"{address} cannot be reached, or has gone away (UNAVAILABLE" in line


def test_closed_output_ends_the_request(example: Example, server: str) -> None:
    with example.started("--address", server, "--prompt", "hello", "--max-tokens", "8000") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        process.wait(timeout=20)
        wait_until(lambda: running(server) == 0, 5, "the slot is free")
    assert process.returncode != 0
