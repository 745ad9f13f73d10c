"""Rendered manifests, and what the cross-checks read out of them."""

from __future__ import annotations

import copy
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import require_tool
from tools.check_imports import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(path.name for path in (KUBERNETES / "overlays").iterdir()))
BASES = ("cpu", "device-plugin", "dra", "dra-mps", "single-container")
"""Overlays that have no component which others could have, too."""
COMPONENTS: dict[str, tuple[str, ...]] = {
    "monitoring": ("monitoring",), "autoscaling": ("monitoring", "autoscaling"), "gateway": ("gateway",),
    "tls": ("tls",), "client-certificates": ("tls", "client-certificates"),
    "everything": ("monitoring", "autoscaling", "gateway", "tls", "client-certificates"),
}
"""What goes with every overlay: a component with what it needs; and all of them."""
EVERYTHING = tuple(f"{overlay}+everything" for overlay in BASES)
"""What ``render`` takes, too."""
Manifest = dict[str, Any]

_QUANTITY = re.compile(r"(\d+)(Ki|Mi|Gi)")
_VARIABLE = re.compile(r"\$\((\w+)\)")


@functools.lru_cache
def render(overlay: str) -> str:
    """The manifests of an overlay, ``NAME`` or ``NAME+COMPONENTS`` (those of ``COMPONENTS``), as one YAML stream.

    On a machine without kubectl they are read from QSPEC_RENDERED/overlay.yaml.
    """
    if rendered := os.environ.get("QSPEC_RENDERED"):
        return Path(rendered, f"{overlay}.yaml").read_text(encoding="utf-8")
    name, _, components = overlay.partition("+")
    if not components:
        return _kustomize(KUBERNETES / "overlays" / name)
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory).resolve()
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [os.path.relpath(KUBERNETES / "overlays" / name, here)],
            "components": [os.path.relpath(KUBERNETES / "components" / each, here) for each in COMPONENTS[components]],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        return _kustomize(here)


def _kustomize(directory: Path) -> str:
    done = subprocess.run(
        [require_tool("kubectl"), "kustomize", str(directory)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # deprecations
    return done.stdout


def manifests(overlay: str) -> list[Manifest]:
    """The overlay's manifests, the caller's to change."""
    return copy.deepcopy(_parsed(overlay))


@functools.lru_cache
def _parsed(overlay: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(render(overlay)) if document]


def is_single(overlay: str) -> bool:
    """Whether the coordinator starts its workers, in its own container."""
    return overlay.partition("+")[0] in ("device-plugin", "single-container")


def is_gpu(overlay: str) -> bool:
    """Whether pods run on GPUs."""
    return overlay.partition("+")[0] in ("device-plugin", "dra", "dra-mps")


def one(overlay: str, kind: str, name: str = "qspec") -> Manifest:
    """The only manifest of this kind and name."""
    (found,) = (each for each in manifests(overlay) if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pod(overlay: str) -> Manifest:
    """The pod's specification."""
    specification: Manifest = one(overlay, "Deployment")["spec"]["template"]["spec"]
    return specification


def containers(overlay: str) -> dict[str, Manifest]:
    """All containers of the pod by name, in the order in which they start."""
    specification = pod(overlay)
    return {each["name"]: each for each in [*specification.get("initContainers", []), *specification["containers"]]}


def programs(overlay: str) -> dict[str, Manifest]:
    """The containers that run a program of ours."""
    return {name: each for name, each in containers(overlay).items() if each["command"][:2] == ["python", "-m"]}


def environment_of(overlay: str, container: Manifest) -> dict[str, str]:
    """The container's environment beside its image's."""
    sources = {each["configMapRef"]["name"] for each in container.get("envFrom", [])}
    environment: dict[str, str] = {}
    for each in manifests(overlay):
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] in sources:
            environment |= each["data"]
    return environment | {each["name"]: each["value"] for each in container.get("env", [])}


def arguments(overlay: str, container: Manifest) -> list[str]:
    """The container's arguments as its program sees them: ``$(NAME)`` is taken from its environment."""
    environment = environment_of(overlay, container)
    return [_VARIABLE.sub(lambda match: environment[match[1]], argument) for argument in container["args"]]


def writable_paths(overlay: str, container: Manifest) -> Iterator[Path]:
    """Where the container may write: mounts of an emptyDir."""
    empty = {volume["name"] for volume in pod(overlay)["volumes"] if "emptyDir" in volume}
    for mount in container["volumeMounts"]:
        if mount["name"] in empty and not mount.get("readOnly"):
            yield Path(mount["mountPath"])


def mebibytes(quantity: str) -> float:
    """A quantity of memory with a binary suffix."""
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None, quantity
    return int(match[1]) * {"Ki": 2**-10, "Mi": 1, "Gi": 2**10}[match[2]]
