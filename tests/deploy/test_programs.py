"""Manifests and programs agree: commands, options, ports, sockets, paths, users, probes, times and memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.public_port import PublicPort
from coordinator.stack import STOP_GRACE_S
from coordinator.worker import START_TIMEOUT_S
from qspec.cli import stack_config
from qspec.quant.methods import Backend
from tests.deploy.manifests import (
    BASES,
    EVERYTHING,
    OVERLAYS,
    arguments,
    containers,
    is_gpu,
    is_single,
    manifests,
    mebibytes,
    one,
    pod,
    programs,
    writable_paths,
)
from tests.deploy.memory import HostMemory, host_memory
from tests.deploy.options import parse
from tools.dockerfile import final_stage, image_user, read_dockerfile

EACH = (*OVERLAYS, *EVERYTHING)
SINGLE = tuple(overlay for overlay in EACH if is_single(overlay))
THREE_CONTAINERS = tuple(overlay for overlay in EACH if not is_single(overlay))
MEASURED_MIB = 1077
"""Proportional memory of a stack with SmolLM2 on CPUs (README.md, "Measured")."""

each_overlay = pytest.mark.parametrize("overlay", EACH)
each_pod_of_three = pytest.mark.parametrize("overlay", THREE_CONTAINERS)


@each_overlay
def test_commands_and_options_are_those_of_the_programs(overlay: str) -> None:
    found = programs(overlay)
    assert list(found) == (["coordinator"] if is_single(overlay) else ["verifier", "drafter", "coordinator"])
    for name, container in found.items():
        assert container["command"] == ["python", "-m", name]
        parse(name, arguments(overlay, container))


@each_overlay
def test_only_gpu_overlays_use_the_gpu(overlay: str) -> None:
    for container in programs(overlay).values():
        assert ("--device=cuda" in container["args"]) == is_gpu(overlay)


@each_overlay
def test_the_programs_of_a_pod_agree_on_their_stack(overlay: str) -> None:
    configurations = {stack_config(parse(name, arguments(overlay, each))) for name, each in programs(overlay).items()}
    (config,) = configurations
    if not is_single(overlay):  # processes that decide for themselves could decide differently
        assert "auto" not in (config.draft_quantization, config.verify_quantization)
    for container in programs(overlay).values():
        (models,) = (mount for mount in container["volumeMounts"] if mount["name"] == "models")
        assert models["readOnly"] is True
        assert Path(config.model).is_relative_to(models["mountPath"])


@each_pod_of_three
def test_the_coordinator_finds_its_workers(overlay: str) -> None:
    found = {name: parse(name, arguments(overlay, each)) for name, each in programs(overlay).items()}
    assert found["coordinator"].verifier_address == [found["verifier"].listen]
    assert found["coordinator"].drafter_address == [found["drafter"].listen]
    directory = Path(found["verifier"].listen.removeprefix("unix:")).parent
    maker = containers(overlay)["socket-directory"]
    assert maker["command"] == ["mkdir", "--parents", "--mode=0700", str(directory)]
    for container in containers(overlay).values():
        assert any(directory.is_relative_to(path) and directory != path for path in writable_paths(overlay, container))


@each_pod_of_three
def test_workers_start_first_and_stop_last(overlay: str) -> None:
    assert list(containers(overlay)) == ["socket-directory", "verifier", "drafter", "coordinator"]
    policies = {name: each.get("restartPolicy") for name, each in containers(overlay).items()}
    assert policies == {"socket-directory": None, "verifier": "Always", "drafter": "Always", "coordinator": None}


@pytest.mark.parametrize("overlay", SINGLE)
def test_a_single_container_makes_its_own_sockets(overlay: str) -> None:
    assert "initContainers" not in pod(overlay) or not pod(overlay)["initContainers"]
    args = parse("coordinator", arguments(overlay, programs(overlay)["coordinator"]))
    assert args.verifier_address == args.drafter_address == []
    assert args.runtime_dir.parent in writable_paths(overlay, programs(overlay)["coordinator"])


@each_overlay
def test_ports(overlay: str) -> None:
    container = programs(overlay)["coordinator"]
    args = parse("coordinator", arguments(overlay, container))
    ports = {}
    for name, listen in (("grpc", args.listen), ("health", args.health_listen), ("metrics", args.metrics_listen)):
        host, _, port = listen.rpartition(":")
        assert host == "0.0.0.0"
        ports[name] = int(port)
    assert {each["name"]: each["containerPort"] for each in container["ports"]} == ports
    for name, names in (("qspec", ["grpc"]), ("qspec-pods", ["grpc", "metrics"])):  # each pod is scraped by one Service
        exposed = one(overlay, "Service", name)["spec"]["ports"]
        assert [(each["name"], each["port"], each["targetPort"]) for each in exposed] == [
            (each, ports[each], each) for each in names]
        assert exposed[0]["appProtocol"] == ("https" if args.tls_cert else "kubernetes.io/h2c")
    clients, scrapers = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert [each["port"] for each in clients["ports"]] == [ports["grpc"]]
    assert [each["port"] for each in scrapers["ports"]] == [ports["metrics"]]
    assert scrapers["from"] == [{"namespaceSelector": {"matchLabels": {"qspec/metrics": "allowed"}}}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["health"]
    stage = final_stage(read_dockerfile(), "cpu")
    assert [int(each.text) for each in stage if each.keyword == "EXPOSE"] == [ports["grpc"]]


@pytest.mark.parametrize(("overlay", "count"), [
    *((overlay, 3 if overlay == "tls" else 0) for overlay in OVERLAYS),
    *((f"{overlay}+everything", 4) for overlay in BASES), ("cpu+tls", 3),
])
def test_plain_text_is_said_or_certificates_are_mounted(overlay: str, count: int) -> None:
    container = programs(overlay)["coordinator"]
    args = parse("coordinator", arguments(overlay, container))
    PublicPort(  # refuses what the program would refuse
        listen=args.listen, tls_cert=args.tls_cert, tls_key=args.tls_key, client_ca=args.client_ca,
        insecure=args.insecure, health_listen=args.health_listen)
    given = (args.tls_cert, args.tls_key, args.api_keys_file, args.client_ca)
    files = [path for path in given if path is not None]
    assert len(files) == count
    secrets = {volume["name"]: volume["secret"] for volume in pod(overlay)["volumes"] if "secret" in volume}
    mounts = {Path(each["mountPath"]): secrets[each["name"]] for each in container["volumeMounts"]
              if each["name"] in secrets}
    for path in files:
        assert mounts[path.parent]["defaultMode"] & 0o007 == 0  # the key's readers are the pod's user and group
    assert len(mounts) == len({path.parent for path in files})


@each_pod_of_three
def test_workers_are_probed_at_their_sockets(overlay: str) -> None:
    for name in ("verifier", "drafter"):
        container = programs(overlay)[name]
        listen = parse(name, arguments(overlay, container)).listen
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"] == ["python", "-m", "qspec", "health", listen]
        assert "readinessProbe" not in container  # streams go on without a drafter


@each_overlay
def test_a_start_gets_the_time_that_the_programs_give_it(overlay: str) -> None:
    for name, container in programs(overlay).items():
        probe, wait_s = container["startupProbe"], parse(name, arguments(overlay, container)).wait_for_model
        assert wait_s > 0  # a volume that is still empty is no reason to end
        assert probe["periodSeconds"] * probe["failureThreshold"] >= START_TIMEOUT_S + wait_s


@each_overlay
def test_a_drain_fits_into_the_grace_period(overlay: str) -> None:
    container = programs(overlay)["coordinator"]
    grace_s = parse("coordinator", arguments(overlay, container)).grace
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause_s > 0
    assert pod(overlay)["terminationGracePeriodSeconds"] >= pause_s + grace_s + 2 * STOP_GRACE_S
    rollout = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rollout == {"maxUnavailable": 0, "maxSurge": 1}


@each_overlay
def test_users_and_paths_are_those_of_the_image(overlay: str) -> None:
    target = "gpu" if is_gpu(overlay) else "cpu"
    stage = final_stage(read_dockerfile(), target)
    context = pod(overlay)["securityContext"]
    assert image_user(read_dockerfile(), target) == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["fsGroup"] == context["runAsGroup"]
    environment = {name: value for each in stage if each.keyword == "ENV" for name, value in each.pairs()}
    for name, container in programs(overlay).items():
        writable = set(writable_paths(overlay, container))
        assert Path(environment["QSPEC_CACHE_DIR"]) in writable, name
        assert Path("/tmp") in writable, name
        assert container["image"].endswith("-gpu" if is_gpu(overlay) else "-cpu")


def memory_of(overlay: str) -> HostMemory:
    """By the options of its pods."""
    config = stack_config(parse("coordinator", arguments(overlay, programs(overlay)["coordinator"])))
    return host_memory(config, Backend.CUDA if is_gpu(overlay) else Backend.CPU_NATIVE)


@each_overlay
def test_memory_follows_the_budget_of_the_options(overlay: str) -> None:
    found, needed = programs(overlay), memory_of(overlay)
    needs = {"verifier": needed.verifier, "drafter": needed.drafter, "coordinator": needed.coordinator}
    if is_single(overlay):
        needs = {"coordinator": sum(needs.values())}
    for name, need in needs.items():
        resources = found[name]["resources"]
        assert mebibytes(resources["requests"]["memory"]) * 2**20 >= need, name
    converting = found["coordinator" if is_single(overlay) else "verifier"]["resources"]["limits"]["memory"]
    assert mebibytes(converting) * 2**20 >= next(iter(needs.values())) + needed.conversion
    for container in containers(overlay).values():
        resources = container["resources"]
        for name, request in resources["requests"].items():
            if name == "memory":
                assert mebibytes(request) <= mebibytes(resources["limits"][name])
            assert name in resources["limits"]


def test_the_budget_covers_what_was_measured() -> None:
    needed = memory_of("cpu")
    assert needed.verifier + needed.drafter + needed.coordinator >= MEASURED_MIB * 2**20


@pytest.mark.parametrize("overlay", [overlay for overlay in EACH if overlay.startswith("dra")])
def test_both_workers_share_one_gpu(overlay: str) -> None:
    (claim,) = pod(overlay)["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == one(overlay, "ResourceClaimTemplate", "qspec-gpu")["metadata"]["name"]
    for name, container in containers(overlay).items():
        claims = container["resources"].get("claims", [])
        assert claims == ([{"name": claim["name"]}] if name in ("verifier", "drafter") else [])
    assert pod(overlay)["shareProcessNamespace"] is True


@each_overlay
def test_selectors_find_the_pods(overlay: str) -> None:
    labels = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [one(overlay, "Service", name)["spec"]["selector"] for name in ("qspec", "qspec-pods")]
    selectors += [one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]]
    selectors += [one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selectors += [each["labelSelector"]["matchLabels"] for each in pod(overlay)["topologySpreadConstraints"]]
    assert len(selectors) == 6
    for selector in selectors:
        assert selector and selector.items() <= labels


def test_an_autoscaler_owns_the_number_of_replicas() -> None:
    assert "replicas" not in one("autoscaling", "Deployment")["spec"]
    assert one("autoscaling", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "qspec"


def test_the_route_names_services_that_exist() -> None:
    from coordinator.program import SERVICE_NAME

    (rule,) = next(each for each in manifests("gateway") if each["kind"] == "GRPCRoute")["spec"]["rules"]
    assert [each["method"]["service"] for each in rule["matches"]] == [SERVICE_NAME, "grpc.health.v1.Health"]
    (backend,) = rule["backendRefs"]
    assert backend["port"] == one("gateway", "Service", backend["name"])["spec"]["ports"][0]["port"]
