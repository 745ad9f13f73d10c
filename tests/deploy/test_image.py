"""The image's file, its context and the compose file, as far as they can be checked without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from coordinator.public_port import public_port
from qspec.__main__ import main
from tests.deploy.options import parse
from tests.deploy.tools import require_tool
from tools.check_imports import ROOT
from tools.dockerfile import DOCKERFILE, Instruction, final_stage, image_user, read_dockerfile

TARGETS = ("cpu", "gpu")


def instructions(target: str, keyword: str) -> list[str]:
    return [each.text for each in final_stage(read_dockerfile(), target) if each.keyword == keyword]


def split(words: list[str]) -> tuple[str, list[str]]:
    """A program, and what it is given."""
    return words[0], words[1:]


def test_linter() -> None:
    command = [require_tool("hadolint"), "--failure-threshold", "style", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_build_without_a_target_is_the_cpu_image() -> None:
    assert next(reversed(read_dockerfile())) == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_command(target: str) -> None:
    (entry,), (command,) = instructions(target, "ENTRYPOINT"), instructions(target, "CMD")
    assert json.loads(entry) == ["python", "-m"]
    (port,) = instructions(target, "EXPOSE")
    args = parse(*split(json.loads(command)))
    assert args.listen == f"0.0.0.0:{port}"
    assert public_port(args).insecure  # said, or it would not start


@pytest.mark.parametrize("target", TARGETS)
def test_health_check_is_a_command_that_exists(target: str) -> None:
    (check,), (command,) = instructions(target, "HEALTHCHECK"), instructions(target, "CMD")
    python, option, module, *given = json.loads(check.partition("CMD ")[2])
    assert [python, option, module] == ["python", "-m", "qspec"]
    assert main([*given, "--timeout=0.2"]) == 1  # understood; nobody answers here
    assert given[-1] == parse(*split(json.loads(command))).health_listen  # plain text whatever the public port speaks


@pytest.mark.parametrize(("target", "packages"), [("cpu", []), ("gpu", ["gcc", "libc6-dev"])])
def test_the_runtime_has_no_root_and_a_compiler_only_where_kernels_need_it(target: str, packages: list[str]) -> None:
    steps = final_stage(read_dockerfile(), target)
    commands = [each.text for each in steps if each.keyword == "RUN"]
    assert not any("pip" in command for command in commands)
    installed = [re.findall(r"apt-get install (.*?)&&", command) for command in commands]
    assert [word for found in installed for words in found for word in words.split() if word[0] != "-"] == packages
    run = next(each.text for each in steps if each.keyword == "RUN")
    uid, gid = image_user(read_dockerfile(), target).split(":")
    assert f"useradd --uid {uid} --gid {gid}" in run
    (cache,) = json.loads(instructions(target, "VOLUME")[0])
    environment = {name: value for each in steps if each.keyword == "ENV" for name, value in each.pairs()}
    assert environment["QSPEC_CACHE_DIR"] == cache
    assert f"install --directory --owner={uid} --group={gid} --mode=0700 {cache}" in run


def test_every_package_is_one_of_the_constraints() -> None:
    for stage in read_dockerfile().values():
        for each in stage.instructions:
            for command in re.split(r"&&", each.text) if each.keyword == "RUN" else []:
                if "pip install" in command:
                    assert "--constraint constraints.txt" in command


def copied() -> list[str]:
    """What the image's build takes from the repository."""
    steps: list[Instruction] = [each for stage in read_dockerfile().values() for each in stage.instructions]
    sources = [each.text.split()[:-1] for each in steps if each.keyword == "COPY" and "--from" not in each.text]
    return sorted({source for each in sources for source in each})


def test_the_context_is_what_is_copied() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"]
    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == copied()
    assert all((ROOT / source).exists() for source in copied())
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__", "**/*.so"]


def test_what_the_distribution_needs_is_copied() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^include = \[(.*)\]$", project, flags=re.MULTILINE)
    (readme,) = re.findall(r'^readme = "(.*)"$', project, flags=re.MULTILINE)
    (licence,) = re.findall(r'^license-files = \["(.*)"\]$', project, flags=re.MULTILINE)
    needed = {name for name in re.findall(r'"([\w.*]+)"', packages) if "." not in name}
    assert needed | {readme, licence, "pyproject.toml", "MANIFEST.in", "constraints.txt"} == set(copied())


def test_compose() -> None:
    document = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    service = document["services"]["qspec"]
    assert service["build"]["target"] in read_dockerfile()
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKERFILE
    args = parse(*split(service["command"]))
    assert public_port(args).insecure and service["ports"][0].startswith("127.0.0.1:")
    assert service["user"] == image_user(read_dockerfile(), "cpu")
    assert json.loads(instructions("cpu", "HEALTHCHECK")[0].partition("CMD ")[2])[-1] == args.health_listen
    port, metrics_port = args.listen.rpartition(":")[2], args.metrics_listen.rpartition(":")[2]
    assert service["ports"] == [f"127.0.0.1:{each}:{each}" for each in (port, metrics_port)]
    assert port == instructions("cpu", "EXPOSE")[0]
    mounts = [tuple(re.sub(r"\$\{[^}]*\}", "X", each).split(":")) for each in service["volumes"]]
    assert ("X", str(Path(args.model).parent), "ro") in mounts
    assert ("cache", *json.loads(instructions("cpu", "VOLUME")[0])) in mounts
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["tmpfs"][0].startswith("/tmp:")
    assert int(service["stop_grace_period"].removesuffix("s")) > args.grace
