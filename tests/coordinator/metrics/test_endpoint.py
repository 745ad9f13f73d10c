"""The metrics' port: what it answers, what it refuses, and that the documentation lists what it has."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from coordinator.metrics.__main__ import table
from coordinator.metrics.endpoint import metrics_endpoint
from coordinator.pair import Pair
from coordinator.serving import Serving
from qspec.errors import InvalidInput
from tests.coordinator.metrics.scraped import read_scrape
from tests.fakes import FakeVerifier
from tools.check_imports import ROOT

DOCUMENT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def fetch(address: str | None, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        return bytes(answer.read()).decode()


def test_documentation_and_endpoint_list_the_same() -> None:
    rows = re.findall(r"^\| `(qspec_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|", DOCUMENT, flags=re.MULTILINE)
    serving = Serving(model="toy", pairs=(Pair(verifier=FakeVerifier().describe()),))
    with metrics_endpoint("127.0.0.1:0", serving) as address:
        now = read_scrape(fetch(address))
    assert {name: kind for name, kind, _, _ in rows} == now.types
    assert {name: text for name, _, _, text in rows} == now.helps
    assert {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, _, labels, _ in rows} == now.labels


def test_the_table_of_the_documentation_is_the_printed_one() -> None:
    assert "\n".join(table()) in DOCUMENT


def test_the_process_s_own_metrics_come_along() -> None:
    with metrics_endpoint("localhost:0", Serving(model="toy")) as address:
        assert "process_resident_memory_bytes" in fetch(address)


def test_nothing_listens_unless_asked_for_and_nothing_is_left() -> None:
    with metrics_endpoint(None, Serving(model="toy")) as address:
        assert address is None
    with metrics_endpoint("127.0.0.1:0", Serving(model="toy")) as address:
        assert address is not None
    with pytest.raises(OSError):
        fetch(address)


@pytest.mark.parametrize("listen", ["nonsense", "unix:/tmp/metrics.sock", "127.0.0.1:x", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(InvalidInput, match="^metrics_listen: .*HOST:PORT"):
        metrics_endpoint(listen, Serving(model="toy")).__enter__()


def test_an_occupied_port_and_a_strange_host_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        listen = f"127.0.0.1:{occupied.getsockname()[1]}"
        with pytest.raises(InvalidInput, match=f"metrics_listen: cannot listen at {listen}: Address already in use"):
            metrics_endpoint(listen, Serving(model="toy")).__enter__()
    with pytest.raises(InvalidInput, match="metrics_listen: cannot listen at 192.0.2.1:0"):
        metrics_endpoint("192.0.2.1:0", Serving(model="toy")).__enter__()


def test_the_program_refuses_an_occupied_port_before_it_starts_a_worker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        done = subprocess.run(
            [sys.executable, "-m", "coordinator", f"--listen=unix:{tmp_path}/c.sock",
             f"--metrics-listen=127.0.0.1:{occupied.getsockname()[1]}"],
            capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: metrics_listen: cannot listen at") and done.stderr.count("\n") == 1
