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
from tests.deploy.rehearsal.kubelet import Pod
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


@pytest.mark.timeout(300)
def test_a_volume_that_is_filled_late_is_waited_for(volumes: Mapping[str, Path], tmp_path: Path) -> None:
    (empty := tmp_path / "models").mkdir(mode=0o755)
    (directory := tmp_path / "pod").mkdir()
    waiting = Pod(OVERLAY, {"models": empty}, directory)
    port = one(OVERLAY, "Service")["spec"]["ports"][0]["port"]
    told = "waiting for the model, at most 3600 s: /models/smollm2.gguf does not exist"

    def log() -> str:
        container = waiting.sandbox.containers.get("verifier")
        return container.log.read_text() if container is not None else ""

    async def rehearse() -> str:
        starting = asyncio.create_task(waiting.start())
        while told not in log():
            await asyncio.sleep(0.1)
            assert not starting.done()
        manifest = programs(OVERLAY)["verifier"]
        asked = [*manifest["startupProbe"]["exec"]["command"], "--timeout=10"]
        assert not await asyncio.to_thread(waiting.sandbox.containers["verifier"].execute, asked, 30)  # NOT_SERVING
        shutil.copytree(volumes["models"], empty, dirs_exist_ok=True)
        await starting
        return await text_of(f"{waiting.sandbox.address}:{port}", PROMPTS[0])

    try:
        assert asyncio.run(rehearse())
        assert waiting.failures == []
        assert log().count("waiting for the model") == 1
    finally:
        waiting.close()


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
