"""Two processes by turns on a GPU, without and with MPS; by interprocess events, too. Figures: benchmarks/gpu."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from benchmarks.gpu.peer import peers, take_turns
from coordinator.mps import BINARY, MpsDaemon, running_daemon

pytestmark = pytest.mark.gpu


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[MpsDaemon]:
    """A private daemon."""
    binary = which(BINARY)
    if binary is None:
        pytest.skip(f"NOT TESTED UNDER MPS: {BINARY} is not installed")
    daemon = MpsDaemon(binary, tmp_path / "mps")
    yield daemon
    daemon.close()


def round_us(environment: dict[str, str] | None) -> float:
    with peers(environment) as (first, second):
        return statistics.median(take_turns(
            first, second, "turns", rounds=50, repeats=5, megabytes=32, first_works=1, second_works=1))


def test_mps_makes_turns_cheaper_and_leaves_nothing(daemon: MpsDaemon, tmp_path: Path) -> None:
    without = round_us(None)
    environment = daemon.wait_ready()
    print(f"found by others: {running_daemon(environment)}")
    with_mps = round_us(environment)
    logs = [path.read_text(errors="replace") for path in (tmp_path / "mps" / "log").iterdir() if path.is_file()]
    print(f"a round of two turns: {without:.0f} µs without MPS, {with_mps:.0f} µs with it")
    assert any("server" in log.lower() for log in logs), "no client has reached the daemon"
    assert with_mps < without
    daemon.close()
    assert not (tmp_path / "mps").exists()
    assert not [name for name in programs() if name.startswith("nvidia-cuda-mps")]


def programs() -> list[str]:
    """Names of all living processes."""
    names = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                status = (directory / "stat").read_text(errors="replace")
            except OSError:
                continue
            name, _, rest = status.partition("(")[2].rpartition(")")
            if rest.split()[0] != "Z":
                names.append(name)
    return names


@pytest.mark.parametrize("by_events", [False, True])
def test_kernels_of_two_processes_keep_their_order(by_events: bool) -> None:
    rounds, repeats, warm_up = 100, 2, 20
    with peers() as (first, second):
        specs = [["chain", "float32", [1 << 20], "verifier"]]
        second.ask("open", descriptor=first.ask("create", specs=specs, epoch=1, budget=[])["descriptor"])
        handles = [peer.ask("export_event")["handle"] for peer in (first, second)]
        first.ask("import_event", handle=handles[1])
        second.ask("import_event", handle=handles[0])
        take_turns(first, second, "ordered", region="chain", rounds=rounds, repeats=repeats, by_events=by_events)
        additions = 2.0 * (rounds * repeats + warm_up)
        assert first.ask("read", region="chain") == {"least": additions, "most": additions}
