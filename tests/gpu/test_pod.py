"""Pods of the ``dra`` overlays on a GPU: two workers that are not root, in one PID namespace, share the arena."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.mps import BINARY, CONTROL_FILE, LOGS, PIPES
from qspec.models.resolve import resolve
from tests.deploy.rehearsal.caller import drafted_text
from tests.deploy.rehearsal.container_init import Mount
from tests.deploy.rehearsal.kubelet import Pod
from tests.deploy.rehearsal.needs import require_namespaces
from tests.deploy.rehearsal.sandbox import DeviceParts
from tests.tiny_models import write_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

PROMPT = "The capital of France is"
USER = 10001
START_S = 300.0
"""Seconds for a pod to start; kernels are compiled in it."""
MPS_START_S = 20.0
DRIVER = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
"""Where this machine has the driver's libraries, which NVIDIA's container toolkit puts where they are found."""


class NodeMps:
    """The MPS daemon that NVIDIA's driver for DRA runs for a claim with the strategy MPS, as the claim's user."""

    def __init__(self, directory: Path) -> None:
        """``directory``: its own user's, and reachable by it (pytest's are not)."""
        self._environment = {**os.environ, PIPES: str(directory), LOGS: str(directory)}
        self._user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL", "--"]
        self._daemon = subprocess.Popen([*self._user, BINARY, "-f"], env=self._environment)
        until = time.monotonic() + MPS_START_S
        while not (directory / CONTROL_FILE).exists():
            assert self._daemon.poll() is None, f"{BINARY} ended with {self._daemon.poll()}"
            assert time.monotonic() < until, f"{BINARY} made no {CONTROL_FILE}"
            time.sleep(0.1)

    def tell(self, command: str) -> list[int]:
        """The numbers that the daemon answers a command with."""
        done = subprocess.run(
            [*self._user, BINARY], input=f"{command}\n", env=self._environment, capture_output=True, text=True,
            timeout=30, check=True)
        return [int(word) for word in done.stdout.split() if word.isdigit()]

    def clients(self) -> list[int]:
        """The processes that use the GPU through its servers."""
        return [client for server in self.tell("get_server_list") for client in self.tell(f"get_client_list {server}")]

    def close(self) -> None:
        """End it with its servers."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.tell("quit -t 5")
        self._daemon.terminate()
        try:
            self._daemon.wait(20)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()


@pytest.fixture
def node_mps() -> Iterator[tuple[NodeMps, DeviceParts]]:
    """The daemon, and what the driver puts into containers: the way to it, and the /dev/shm that both use."""
    with tempfile.TemporaryDirectory(prefix="qspec-mps-", ignore_cleanup_errors=True) as name:
        os.chown(name, USER, USER)
        daemon = NodeMps(Path(name))
        places = ((name, "/mps"), ("/dev/shm", "/dev/shm"))
        mounts = tuple(Mount(source=source, path=path, read_only=False) for source, path in places)
        try:
            yield daemon, DeviceParts(mounts, {**DRIVER, PIPES: "/mps", LOGS: "/mps"})
        finally:
            daemon.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The volume with the model: a tiny one unless QSPEC_REHEARSE_MODEL names another."""
    (models := tmp_path / "models").mkdir()
    if chosen := os.environ.get("QSPEC_REHEARSE_MODEL"):
        shutil.copy(resolve(chosen).path, models / "smollm2.gguf")
    else:
        write_tiny_model(models / "smollm2.gguf", "tied_wide")
    for path in (models, *models.rglob("*")):
        path.chmod(0o755)
    return models


def process_space(pid: int) -> Path:
    """Tells the PID namespace of a process from others."""
    return Path(f"/proc/{pid}/ns/pid").readlink()


def rehearse(overlay: str, device: DeviceParts, models: Path, directory: Path, mps: NodeMps | None) -> None:
    """Start a pod, look at its workers, have texts made with and without drafts, and end it."""
    directory.mkdir()
    pod = Pod(overlay, {"models": models}, directory, device, own_network=False)

    async def run() -> list[str]:
        await asyncio.wait_for(pod.start(), START_S)
        workers = [pod.sandbox.containers[name].main for name in ("verifier", "drafter")]
        assert [worker.uids().real for worker in workers if worker is not None] == [USER, USER]
        spaces = {process_space(worker.pid) for worker in workers if worker is not None}
        assert len(spaces) == 1 and process_space(os.getpid()) not in spaces
        address = f"{pod.sandbox.address}:50051"
        (plain, none_drafted), (same, drafted) = [await drafted_text(address, PROMPT, length) for length in (0, 4)]
        assert plain and plain == same
        assert none_drafted == 0 < drafted
        if mps is not None:
            assert len(set(mps.clients())) == 2  # both workers, and nobody else
        return await pod.terminate()

    try:
        killed = asyncio.run(run())
        assert (pod.failures, killed) == ([], [])
    finally:
        pod.close()


def test_two_workers_that_are_not_root_share_an_arena(models: Path, tmp_path: Path) -> None:
    require_namespaces(network=False)
    rehearse("dra", DeviceParts(environment=DRIVER), models, tmp_path / "pod", None)


def test_they_share_it_through_mps_where_the_claim_says_so(
    models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    require_namespaces(network=False)
    if shutil.which(BINARY) is None:
        pytest.skip(f"{BINARY} is not there")
    mps, device = request.getfixturevalue("node_mps")
    rehearse("dra-mps", device, models, tmp_path / "pod", mps)
