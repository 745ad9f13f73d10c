"""The sandbox of a pod: a network namespace with an address of its own, volumes, and containers in it.

Everything hangs on one process, as a pod's does on its pause container: when it ends, the network is gone; when a
container's first process ends, so are all others of it. Nothing survives the rehearsal, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.deploy.manifests import Manifest
from tests.deploy.rehearsal.container_init import ContainerSpec, Mount, package_places
from tools.check_imports import ROOT
from tools.dockerfile import final_stage, read_dockerfile

_PAUSE = "import signal; signal.pause()"
_DIES_WITH_US = ["setpriv", "--pdeathsig=KILL", "--"]
_OWN_PROCESSES = ["--pid", "--fork", "--kill-child"]
_START_S = 20.0
"""Seconds that namespaces may take."""
_numbers = itertools.count(1)


def image_environment(target: str) -> dict[str, str]:
    """What the image's ENV says, with this interpreter, its packages and these sources in place of its own.

    And the home of its user, as a container runtime does.
    """
    found: dict[str, str] = {}
    for step in final_stage(read_dockerfile(), target):
        if step.keyword == "ENV":
            found |= dict(step.pairs())
        if home := re.search(r"useradd .*--home-dir (\S+)", step.text):
            found["HOME"] = home[1]
    own = Path(sys.executable).parent
    return found | {
        "PATH": f"{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": os.pathsep.join(map(str, package_places())),
    }


def runnable(command: Sequence[str]) -> list[str]:
    """A container's command, with this interpreter for the image's ``python``: not every machine has that name."""
    return [sys.executable, *command[1:]] if command[0] == "python" else list(command)


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started."""

    name: str
    spec: ContainerSpec
    process: subprocess.Popen[bytes]
    """Its parent, outside; ends with its exit status."""
    log: Path

    @property
    def main(self) -> psutil.Process | None:
        """Its first process; None before it is in the container's root, and once it is gone."""
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            for first in psutil.Process(self.process.pid).children():
                if not Path(f"/proc/{first.pid}/root").samefile("/"):
                    return first
        return None

    def stop(self, number: signal.Signals) -> None:
        """Send its first process a signal, if there is one."""
        if (first := self.main) is not None:
            first.send_signal(number)

    def execute(self, command: Sequence[str], timeout_s: float) -> bool:
        """Run a command in it, as a kubelet's exec does; whether it ended with 0 in time."""
        if (first := self.main) is None:
            return False
        inside = ["nsenter", f"--target={first.pid}", "--mount", "--pid", "--net", "--root", "--wd=/"]
        try:
            done = subprocess.run(
                [*inside, *self.spec.as_user(), *runnable(command)], env=self.spec.environment, capture_output=True,
                timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0


@dataclass(frozen=True, slots=True)
class DeviceParts:
    """What a device's driver adds to the containers that claim one."""

    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


NO_DEVICE = DeviceParts()


class Sandbox:
    """One pod's; ``close`` ends all of it."""

    def __init__(
        self, pod: Manifest, image: str, volumes: Mapping[str, Path], directory: Path,
        device: DeviceParts = NO_DEVICE, *, own_network: bool = True,
    ) -> None:
        """
        Args:
            pod: the pod's specification.
            image: target of ``deploy/Dockerfile``.
            volumes: directories for volumes that are no emptyDir.
            directory: an empty one.
            device: for containers with a claim.
            own_network: whether it has an address of its own; without, one pod at a time has this machine's loopback.
        """
        self._pod, self._directory, self._device = pod, directory, device
        self._net = ["--net"] if own_network else []
        self._environment = image_environment(image)
        self._devices = tuple(path.name for path in Path("/dev").glob("nvidia*") if path.is_char_device())
        self.volumes = {
            volume["name"]: self._empty(volume["name"]) if "emptyDir" in volume else volumes[volume["name"]]
            for volume in pod["volumes"]}
        self.containers: dict[str, Container] = {}
        number = next(_numbers)
        self.address = f"10.231.{number}.2" if own_network else "127.0.0.1"
        shared = _OWN_PROCESSES if pod.get("shareProcessNamespace") else []
        self._pause = subprocess.Popen(
            [*_DIES_WITH_US, "unshare", *self._net, *shared, sys.executable, "-c", _PAUSE])
        self._shared = bool(shared)
        if own_network:
            self._connect(f"qspec{os.getpid() % 10_000}-{number}", f"10.231.{number}.1")

    def start(self, name: str, manifest: Manifest, command: Sequence[str], environment: Mapping[str, str]) -> Container:
        """Start a container; ``command`` with its arguments, ``environment`` beside the image's."""
        context = self._pod["securityContext"]
        scratch = self._directory / f"root-{name}"
        scratch.mkdir(exist_ok=True)
        claimed = self._device if manifest.get("resources", {}).get("claims") else NO_DEVICE
        spec = ContainerSpec(
            scratch=str(scratch), mounts=(*self._mounts(manifest), *claimed.mounts), devices=self._devices,
            environment=self._environment | dict(claimed.environment) | dict(environment),
            uid=context["runAsUser"], gid=context["runAsGroup"], groups=(context["fsGroup"],),
            command=tuple(runnable(command)))
        log = self._directory / f"{name}.log"
        with log.open("ab") as output:
            process = self._enter(spec, output)
        self.containers[name] = Container(name, spec, process, log)
        return self.containers[name]

    def close(self) -> None:
        """End what still runs."""
        for container in self.containers.values():
            container.stop(signal.SIGKILL)
            container.process.kill()
            container.process.wait()
        self._pause.kill()
        self._pause.wait()

    def _enter(self, spec: ContainerSpec, output: IO[bytes]) -> subprocess.Popen[bytes]:
        target = str(self._namespace_holder())
        if self._shared:
            way = ["nsenter", f"--target={target}", *self._net, "--pid", "--", "unshare", "--mount"]
        else:
            way = ["nsenter", f"--target={target}", *self._net, "--", "unshare", "--mount", *_OWN_PROCESSES]
            if not self._net:
                way = way[way.index("--") + 1:]  # there is nothing to enter
        program = [sys.executable, "-m", "tests.deploy.rehearsal.container_init", spec.to_json()]
        return subprocess.Popen([*_DIES_WITH_US, *way, *program], cwd=ROOT, stdout=output, stderr=output)

    def _mounts(self, manifest: Manifest) -> list[Mount]:
        claims = {volume["name"] for volume in self._pod["volumes"] if "emptyDir" not in volume}
        return [
            Mount(
                source=str(self.volumes[mount["name"]]), path=mount["mountPath"],
                read_only=mount.get("readOnly", False) or mount["name"] in claims)
            for mount in manifest["volumeMounts"]]

    def _empty(self, name: str) -> Path:
        """An emptyDir as a kubelet makes it: open to all, its group the pod's."""
        place = self._directory / f"volume-{name}"
        place.mkdir()
        os.chown(place, 0, self._pod["securityContext"]["fsGroup"])
        place.chmod(0o2777)
        return place

    def _namespace_holder(self) -> int:
        if not self._shared:
            return self._pause.pid
        for _ in self._until_made("process namespace"):
            for first in psutil.Process(self._pause.pid).children():
                return int(first.pid)
        raise AssertionError("unreachable")

    def _connect(self, link: str, gateway: str) -> None:
        """A pair of interfaces, one end in the sandbox; both are gone once that is."""
        ours, theirs = f"{link}h"[-15:], f"{link}p"[-15:]
        holder = self._wait_for_namespace()
        inside = ["nsenter", "--target", holder, "--net", "ip"]
        for command in (
            ["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", holder],
            ["ip", "address", "add", f"{gateway}/30", "dev", ours],
            ["ip", "link", "set", ours, "up"],
            [*inside, "address", "add", f"{self.address}/30", "dev", theirs],
            [*inside, "link", "set", theirs, "up"],
            [*inside, "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True)

    def _wait_for_namespace(self) -> str:
        own = Path("/proc/self/ns/net").readlink()
        for _ in self._until_made("network namespace"):
            if Path(f"/proc/{self._pause.pid}/ns/net").readlink() != own:
                break
        return str(self._pause.pid)

    def _until_made(self, what: str) -> Iterator[None]:
        """Look again, for a while; ``RuntimeError`` when there is still no such thing."""
        until = time.monotonic() + _START_S
        while self._pause.poll() is None and time.monotonic() < until:
            yield
            time.sleep(0.01)
        raise RuntimeError(f"no {what} could be made")
