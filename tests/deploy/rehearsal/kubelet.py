"""What a kubelet does with a pod: start order, probes, preStop, SIGTERM, and SIGKILL for what does not end in time.

Times are the manifest's. A container that ends by itself, or whose liveness probe fails, is not started again but
noted: a rehearsal in which that happens has failed.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import Manifest, arguments, environment_of, pod
from tests.deploy.rehearsal.sandbox import NO_DEVICE, Container, DeviceParts, Sandbox

_INIT_S = 60.0
"""Seconds that a container before the others may take."""


class PodFailed(AssertionError):
    """A pod did what none may do; with the end of the container's log."""


class Pod:
    """One pod of an overlay."""

    def __init__(
        self, overlay: str, volumes: Mapping[str, Path], directory: Path,
        device: DeviceParts = NO_DEVICE, *, own_network: bool = True,
    ) -> None:
        """``volumes``, ``directory``, ``device`` and ``own_network``: see ``Sandbox``."""
        self._overlay, self._manifest = overlay, pod(overlay)
        _, _, image = self._manifest["containers"][0]["image"].rpartition("-")
        self.sandbox = Sandbox(self._manifest, image, volumes, directory, device, own_network=own_network)
        self.ready = False
        self.failures: list[str] = []
        self._watches: list[asyncio.Task[None]] = []
        self._main = [each["name"] for each in self._manifest["containers"]]
        self._sidecars = [
            each["name"] for each in self._manifest.get("initContainers", []) if each.get("restartPolicy") == "Always"]

    async def start(self) -> None:
        """Return once it is ready; raises ``PodFailed`` when it will not be."""
        for manifest in self._manifest.get("initContainers", []):
            if manifest["name"] in self._sidecars:
                await self._start(manifest)
            else:
                container = self._run(manifest)
                if await asyncio.to_thread(container.process.wait, _INIT_S) != 0:
                    raise PodFailed(_told(container))
        for manifest in self._manifest["containers"]:
            await self._start(manifest)
            self._watch(self._keep_ready(manifest))
        while not self.ready:
            if self.failures:
                raise PodFailed(self.failures[0])
            await asyncio.sleep(0.1)

    async def terminate(self) -> list[str]:
        """End it as a kubelet does; the containers that had to be killed."""
        for watch in self._watches:
            watch.cancel()
        period = self._manifest["terminationGracePeriodSeconds"]
        ends = asyncio.get_running_loop().time() + period
        killed: list[str] = []
        for manifest in self._manifest["containers"]:
            if "preStop" in manifest.get("lifecycle", {}):
                await asyncio.sleep(manifest["lifecycle"]["preStop"]["sleep"]["seconds"])
        for name in [*self._main, *reversed(self._sidecars)]:
            container = self.sandbox.containers[name]
            container.stop(signal.SIGTERM)
            left = ends - asyncio.get_running_loop().time()
            try:
                await asyncio.to_thread(container.process.wait, max(left, 0))
            except subprocess.TimeoutExpired:
                killed.append(name)
        self.ready = False
        self.sandbox.close()
        return killed

    def close(self) -> None:
        """End it at once."""
        for watch in self._watches:
            watch.cancel()
        self.sandbox.close()

    # ---- containers -------------------------------------------------------------------------------------------------

    def _run(self, manifest: Manifest) -> Container:
        given = arguments(self._overlay, manifest) if "args" in manifest else []
        environment = environment_of(self._overlay, manifest)
        return self.sandbox.start(manifest["name"], manifest, [*manifest["command"], *given], environment)

    async def _start(self, manifest: Manifest) -> None:
        """Start it, wait for its startup probe, and watch over it from then on."""
        container = self._run(manifest)
        probe = manifest["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            if await self._probe(container, probe):
                self._watch(self._keep_alive(container, manifest["livenessProbe"]))
                return
            if container.process.poll() is not None:
                raise PodFailed(_told(container))
            await asyncio.sleep(probe["periodSeconds"])
        raise PodFailed(f"{container.name} did not start in time: {_told(container)}")

    def _watch(self, watching: Any) -> None:
        self._watches.append(asyncio.create_task(watching))

    # ---- probes -----------------------------------------------------------------------------------------------------

    async def _probe(self, container: Container, probe: Manifest) -> bool:
        timeout_s = probe["timeoutSeconds"]
        if "exec" in probe:
            return await asyncio.to_thread(container.execute, probe["exec"]["command"], timeout_s)
        return await asks_health(f"{self.sandbox.address}:{probe['grpc']['port']}", timeout_s)

    async def _keep_alive(self, container: Container, probe: Manifest) -> None:
        failed = 0
        while True:
            for _ in range(probe["periodSeconds"]):
                if container.process.poll() is not None:
                    self.failures.append(_told(container))
                    return
                await asyncio.sleep(1)
            failed = 0 if await self._probe(container, probe) else failed + 1
            if failed >= probe["failureThreshold"]:
                self.failures.append(f"{container.name} is not alive: {_told(container)}")
                return

    async def _keep_ready(self, manifest: Manifest) -> None:
        container, probe, failed = self.sandbox.containers[manifest["name"]], manifest["readinessProbe"], 0
        while True:
            failed = 0 if await self._probe(container, probe) else failed + 1
            if failed == 0 or failed >= probe["failureThreshold"]:
                self.ready = failed == 0
            await asyncio.sleep(probe["periodSeconds"])


async def asks_health(address: str, timeout_s: float) -> bool:
    """A kubelet's gRPC probe: whether the server says SERVING."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _told(container: Container) -> str:
    lines: Sequence[str] = container.log.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{container.name} ended with {container.process.poll()}: " + " | ".join(lines[-4:])
