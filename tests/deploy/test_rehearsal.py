"""The ``cpu`` overlay's pods run, roll and refuse as they are meant to (``make rehearse-pod``)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from qspec.models.resolve import resolve
from tests.deploy.manifests import arguments, one, pod, programs
from tests.deploy.options import parse
from tests.deploy.rehearsal.caller import text_of
from tests.deploy.rehearsal.kubelet import Pod, PodFailed
from tests.deploy.rehearsal.needs import require_namespaces
from tests.deploy.rehearsal.rollout import Deployment
from tests.tiny_models import write_tiny_model

OVERLAY = "cpu"
PROMPTS = ("The capital of France is", "Once upon a time", "Water boils at")
CALLERS = 3


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    require_namespaces()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The volume with the model, under the name that the manifests have for it: a tiny one unless it is chosen."""
    models = tmp_path_factory.mktemp("models")
    coordinator = parse("coordinator", arguments(OVERLAY, programs(OVERLAY)["coordinator"]))
    place = models / Path(coordinator.model).name
    if chosen := os.environ.get("QSPEC_REHEARSE_MODEL"):
        shutil.copy(resolve(chosen).path, place)
    else:
        write_tiny_model(place, "tied_wide")
    for path in (models, *models.rglob("*")):
        path.chmod(0o755)
    return {"models": models}


@pytest.mark.timeout(400)
def test_a_rolling_restart_under_load_fails_no_request(volumes: Mapping[str, Path], tmp_path: Path) -> None:
    port = one(OVERLAY, "Service")["spec"]["ports"][0]["port"]

    async def rehearse() -> tuple[dict[str, set[str]], int]:
        texts: dict[str, set[str]] = {prompt: set() for prompt in PROMPTS}
        done, over = 0, asyncio.Event()

        async def call(number: int) -> None:
            nonlocal done
            while not over.is_set():
                prompt = PROMPTS[(number + done) % len(PROMPTS)]
                texts[prompt].add(await text_of(deployment.address(port), prompt))
                done += 1

        async with Deployment.of(OVERLAY, volumes, tmp_path) as deployment:
            callers = [asyncio.create_task(call(number)) for number in range(CALLERS)]
            before = list(deployment.pods)
            await deployment.restart()
            assert not set(before) & set(deployment.pods)
            over.set()
            await asyncio.gather(*callers)  # raises what a request raised
            assert deployment.failures == []
            assert deployment.killed == []
            return texts, done

    texts, done = asyncio.run(rehearse())
    assert done > 2 * CALLERS
    assert all(len(found) == 1 and found != {""} for found in texts.values()), texts


@pytest.mark.timeout(120)
def test_a_missing_model_is_said_in_one_line(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (directory := tmp_path / "pod").mkdir()
    failing = Pod(OVERLAY, {"models": empty}, directory)
    try:
        with pytest.raises(PodFailed, match=r'verifier ended with [1-9]\d*: \{.*"model: /models/smollm2\.gguf'):
            asyncio.run(failing.start())
        (line,) = failing.sandbox.containers["verifier"].log.read_text().splitlines()
        assert "Traceback" not in line
    finally:
        failing.close()


def test_containers_are_confined_as_the_manifest_says(volumes: Mapping[str, Path], tmp_path: Path) -> None:
    (directory := tmp_path / "pod").mkdir()
    confined = Pod(OVERLAY, volumes, directory)
    try:
        manifest = pod(OVERLAY)["containers"][0]
        container = confined.sandbox.start("trial", manifest, ["sleep", "60"], {})
        while container.main is None:
            assert container.process.poll() is None, container.log.read_text()

        def succeeds(*command: str) -> bool:
            return container.execute(command, 5)

        assert succeeds("sh", "-c", 'test "$(id -u):$(id -g):$(id -G)" = 10001:10001:"10001"')
        assert succeeds("sh", "-c", "grep -q 'CapBnd:.0000000000000000' /proc/self/status")
        assert succeeds("touch", "/var/cache/qspec/here", "/tmp/here", "/run/qspec/here")
        for place in ("/here", "/opt/here", "/var/here", "/models/here", "/etc/here"):
            assert not succeeds("touch", place), place
        assert succeeds("test", "-r", "/models/smollm2.gguf")
    finally:
        confined.close()
