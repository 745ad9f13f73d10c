"""A Deployment and its Service: replicas, a rolling restart with one pod more, and the pods that calls are sent to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.deploy.manifests import one
from tests.deploy.rehearsal.kubelet import Pod

NOTICED_AFTER_S = 2.0
"""Seconds until whoever sends calls has heard that a pod is to end; clusters take one or two."""


class Deployment:
    """``async with Deployment.of(…)`` starts every replica and ends what there is."""

    def __init__(self, overlay: str, volumes: Mapping[str, Path], directory: Path) -> None:
        self._overlay, self._volumes, self._directory = overlay, volumes, directory
        self._numbers = itertools.count()
        self._endpoints: list[Pod] = []
        self._turns = itertools.count()
        self.pods: list[Pod] = []
        self.killed: list[str] = []
        """Containers that did not end in time."""

    @classmethod
    @contextlib.asynccontextmanager
    async def of(
        cls, overlay: str, volumes: Mapping[str, Path], directory: Path
    ) -> AsyncIterator[Deployment]:
        """Every replica is ready."""
        deployment = cls(overlay, volumes, directory)
        count = one(overlay, "Deployment")["spec"]["replicas"]
        try:
            await asyncio.gather(*(deployment._add() for _ in range(count)))
            yield deployment
        finally:
            for pod in deployment.pods:
                pod.close()

    @property
    def failures(self) -> list[str]:
        """What went wrong with pods that were not to end."""
        return [failure for pod in self.pods for failure in pod.failures]

    def address(self, port: int) -> str:
        """Where the Service sends the next connection."""
        ready = [pod for pod in self._endpoints if pod.ready]
        return f"{ready[next(self._turns) % len(ready)].sandbox.address}:{port}"

    async def restart(self) -> None:
        """Replace every pod: a new one has to be ready before an old one ends (``maxSurge`` 1)."""
        rolling = one(self._overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
        assert (rolling["maxSurge"], rolling["maxUnavailable"]) == (1, 0), rolling
        for old in list(self.pods):
            await self._add()
            await self._remove(old)

    async def _add(self) -> None:
        directory = self._directory / f"pod-{next(self._numbers)}"
        directory.mkdir()
        pod = Pod(self._overlay, self._volumes, directory)
        self.pods.append(pod)
        await pod.start()
        self._endpoints.append(pod)

    async def _remove(self, pod: Pod) -> None:
        async def forget() -> None:
            await asyncio.sleep(NOTICED_AFTER_S)
            self._endpoints.remove(pod)
        _, killed = await asyncio.gather(forget(), pod.terminate())
        self.killed += killed
        if pod.failures:
            raise AssertionError(pod.failures)
        self.pods.remove(pod)
