"""Pods of the ``dra`` overlays on a GPU: two workers that are not root, in one PID namespace, share the arena."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.mps import BINARY, CONTROL_FILE, LOGS, PIPES
from qspec.models.resolve import resolve
from tests.deploy.rehearsal.caller import text_of
from tests.deploy.rehearsal.container_init import Mount
from tests.deploy.rehearsal.kubelet import Pod
from tests.deploy.rehearsal.needs import require_namespaces
from tests.deploy.rehearsal.sandbox import DeviceParts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

PROMPT = "The capital of France is"
USER = 10001


@contextlib.contextmanager
def mps_of_the_node(directory: Path) -> Iterator[DeviceParts]:
    """The daemon that NVIDIA's driver for DRA runs for a claim with the strategy MPS."""
    directory.mkdir(mode=0o755)
    os.chown(directory, USER, USER)
    environment = {PIPES: str(directory), LOGS: str(directory)}
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--pdeathsig=KILL", "--"]
    with subprocess.Popen([*user, BINARY, "-f"], env=os.environ | environment) as daemon:
        while not (directory / CONTROL_FILE).exists():
            assert daemon.poll() is None
        inside = {PIPES: "/mps", LOGS: "/mps"}
        yield DeviceParts((Mount(source=str(directory), path="/mps", read_only=False),), inside)
        subprocess.run([BINARY], input="quit\n", text=True, env=os.environ | environment, check=False)
        daemon.terminate()


def process_space(pid: int) -> Path:
    """Tells the PID namespace of a process from others."""
    return Path(f"/proc/{pid}/ns/pid").readlink()


@pytest.mark.parametrize("overlay", ["dra", "dra-mps"])
def test_two_workers_that_are_not_root_share_an_arena(overlay: str, tmp_path: Path) -> None:
    require_namespaces()
    (models := tmp_path / "models").mkdir()
    shutil.copy(resolve(os.environ.get("QSPEC_TEST_MODEL", "smollm2")).path, models / "smollm2.gguf")
    (directory := tmp_path / "pod").mkdir()
    with contextlib.ExitStack() as stack:
        device = DeviceParts()
        if overlay == "dra-mps":
            if shutil.which(BINARY) is None:
                pytest.skip(f"{BINARY} is not there")
            device = stack.enter_context(mps_of_the_node(tmp_path / "mps"))
        pod = Pod(overlay, {"models": models}, directory, device)
        stack.callback(pod.close)

        async def rehearse() -> tuple[list[str], list[str]]:
            await pod.start()
            address = f"{pod.sandbox.address}:50051"
            workers = [pod.sandbox.containers[name].main for name in ("verifier", "drafter")]
            assert [worker.uids().real for worker in workers if worker is not None] == [USER, USER]
            assert len({process_space(worker.pid) for worker in workers if worker is not None}) == 1
            texts = [await text_of(address, PROMPT, draft_length=length) for length in (0, 4)]
            return texts, await pod.terminate()

        (plain, drafted), killed = asyncio.run(rehearse())
        assert plain
        assert plain == drafted
        assert (pod.failures, killed) == ([], [])
