"""Every overlay renders, and is what Kubernetes, the Gateway API and NVIDIA's driver take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import (
    BASES,
    COMPONENTS,
    EVERYTHING,
    KUBERNETES,
    OVERLAYS,
    Manifest,
    containers,
    manifests,
    pod,
)
from tests.deploy.tools import refuse
from tools.custom_resource_schemas import KINDS, comment

KUBERNETES_VERSIONS = ("1.34", "1.36", "1.37")
SCHEMAS = KUBERNETES / "schemas"
OWN_SCHEMAS = {kind.name: kind.file_name for kind in KINDS} | {"GpuConfig": "gpuconfig-v1beta1.json"}
"""Kinds that Kubernetes itself does not know."""


def check(manifest: Manifest, version: str) -> None:
    """Raise for a manifest that does not follow its schema."""
    try:
        import jsonschema
        import kubernetes_validate
    except ImportError:
        refuse("kubernetes-validate is not installed: `make deploy-tools` installs it")
        raise
    if manifest["kind"] in OWN_SCHEMAS:
        jsonschema.validate(manifest, json.loads((SCHEMAS / OWN_SCHEMAS[manifest["kind"]]).read_text(encoding="utf-8")))
        limits = json.loads((SCHEMAS / "limits.json").read_text(encoding="utf-8"))
        limited = limits.get(manifest["kind"], {})
        jsonschema.validate(manifest, {**limited, "$defs": limits["$defs"]})
    else:
        assert kubernetes_validate.validate(manifest, version, strict=True).startswith(version)


def driver_parameters(manifest: Manifest) -> list[Manifest]:
    """What a claim hands to its driver."""
    if manifest["kind"] != "ResourceClaimTemplate":
        return []
    return [each["opaque"]["parameters"] for each in manifest["spec"]["spec"]["devices"].get("config", [])]


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_valid(overlay: str, version: str) -> None:
    found = manifests(overlay)
    assert {"Namespace", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= {x["kind"] for x in found}
    for manifest in found:
        check(manifest, version)
        for parameters in driver_parameters(manifest):
            check(parameters, version)


@pytest.mark.parametrize(("overlay", "kind", "path"), [
    ("cpu", "Deployment", ("spec", "template", "spec", "terminationGraceSeconds")),
    ("gateway", "GRPCRoute", ("spec", "rules", 0, "backends")),
    ("dra", "ResourceClaimTemplate", ("spec", "spec", "devices", "requests", 0, "deviceClassName")),
    ("dra-mps", "GpuConfig", ("sharing", "mode")),
    ("monitoring", "ServiceMonitor", ("spec", "endpoints", 0, "targetPorts")),
    ("monitoring", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "expression")),
])
def test_a_wrong_field_is_refused(overlay: str, kind: str, path: tuple[Any, ...]) -> None:
    found = manifests(overlay)
    (planted,) = (x for each in found for x in [each, *driver_parameters(each)] if x["kind"] == kind)
    *parents, name = path
    place = planted
    for step in parents:
        place = place[step]
    place[name] = 1
    with pytest.raises(Exception, match=name):
        check(planted, KUBERNETES_VERSIONS[0])


@pytest.mark.parametrize(("overlay", "kind", "path", "value"), [
    ("gateway", "GRPCRoute", ("spec", "rules", 0, "backendRefs", 0, "port"), 70000),
    ("gateway", "GRPCRoute", ("spec", "rules", 0, "matches", 0, "method", "type"), "Prefix"),
    ("gateway", "GRPCRoute", ("spec", "hostnames", 0), "qspec_example"),
    ("monitoring", "ServiceMonitor", ("spec", "endpoints", 0, "interval"), "quarterly"),
    ("monitoring", "ServiceMonitor", ("spec", "endpoints", 0, "scheme"), "gopher"),
    ("monitoring", "PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "10 minutes"),
    ("dra-mps", "GpuConfig", ("sharing", "strategy"), "Turns"),
])
def test_a_wrong_value_is_refused(overlay: str, kind: str, path: tuple[Any, ...], value: object) -> None:
    found = manifests(overlay)
    (planted,) = (x for each in found for x in [each, *driver_parameters(each)] if x["kind"] == kind)
    *parents, name = path
    place = planted
    for step in parents:
        place = place[step]
    place[name] = value
    with pytest.raises(Exception, match=str(value)):
        check(planted, KUBERNETES_VERSIONS[0])


def test_the_schemas_are_of_the_packages_that_the_tool_names() -> None:
    for kind in KINDS:
        assert json.loads((SCHEMAS / kind.file_name).read_text(encoding="utf-8"))["$comment"] == comment(kind)
    assert {path.name for path in SCHEMAS.iterdir()} == {*OWN_SCHEMAS.values(), "limits.json", "LICENSE"}


@pytest.mark.parametrize("overlay", EVERYTHING)
def test_all_components_together_are_valid(overlay: str) -> None:
    """A combination of some fails only where two of them meet, as they do here."""
    found = manifests(overlay)
    kinds = {manifest["kind"] for manifest in found}
    assert {"ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler", "GRPCRoute"} <= kinds
    for manifest in found:
        check(manifest, KUBERNETES_VERSIONS[-1])


@pytest.mark.parametrize("base", BASES)
def test_every_component_goes_with_every_overlay_by_itself(base: str) -> None:
    kinds = {
        "monitoring": {"ServiceMonitor", "PrometheusRule"}, "autoscaling": {"HorizontalPodAutoscaler"},
        "gateway": {"GRPCRoute"}, "tls": set(), "client-certificates": set(),
    }
    assert {*kinds, "everything"} == set(COMPONENTS)
    alone = {manifest["kind"] for manifest in manifests(base)}
    for component, added in kinds.items():
        assert {manifest["kind"] for manifest in manifests(f"{base}+{component}")} - alone >= added


def test_the_components_that_are_described_are_there() -> None:
    readme = (KUBERNETES.parent / "README.md").read_text(encoding="utf-8")
    (described,) = re.findall(r"^(`monitoring`, .*?) are components\n", readme, flags=re.MULTILINE | re.DOTALL)
    components = {path.name for path in (KUBERNETES / "components").iterdir()}
    assert set(re.findall(r"`([\w-]+)`", described)) == components - {"cuda"} == set(COMPONENTS) - {"everything"}


def test_the_overlays_that_are_described_are_there() -> None:
    readme = (KUBERNETES.parent / "README.md").read_text(encoding="utf-8")
    described = {line.split("`")[1] for line in readme.splitlines() if line.startswith("| `")}
    assert described == set(OVERLAYS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pod_security_is_restricted(overlay: str) -> None:
    """The rules of the profile "restricted", and a read-only root, for every container of every overlay."""
    (namespace,) = (x for x in manifests(overlay) if x["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    specification = pod(overlay)
    assert not {"hostNetwork", "hostPID", "hostIPC"} & specification.keys()
    assert specification["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"emptyDir", "persistentVolumeClaim", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in specification["volumes"])
    for container in containers(overlay).values():
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["runAsNonRoot"] is True
        assert context.keys() & {"runAsUser", "runAsGroup", "privileged"} == set()  # the pod's holds for all


def test_no_manifest_is_left_out() -> None:
    """A file that no kustomization names would be checked by nobody."""
    for directory in [KUBERNETES / "base", *KUBERNETES.glob("components/*"), *KUBERNETES.glob("overlays/*")]:
        kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text(encoding="utf-8"))
        patches = [patch.get("path") for patch in kustomization.get("patches", [])]
        generated = [name for each in kustomization.get("configMapGenerator", []) for name in each.get("files", [])]
        named = {*kustomization.get("resources", []), *patches, *generated, "kustomization.yaml"}
        assert {path.name for path in directory.iterdir()} <= {Path(str(name)).name for name in named}
