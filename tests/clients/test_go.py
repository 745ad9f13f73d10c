"""The Go client is what the protos give, is formatted and vetted, and reads and writes the golden vectors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.go import DIRECTORY, MODULE, GoModule, go_module
from tests.clients.tools import require_tool, run
from tools.generate_protos import ROOT

GENERATED = DIRECTORY / "v1"
_VERSIONS = re.compile(r"^// (?:\t|- )?(protoc(?:-gen-go(?:-grpc)?)?) +(v[\d.]+)$", re.MULTILINE)


@pytest.fixture
def module(tmp_path: Path) -> GoModule:
    return go_module(tmp_path)


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    for tool in ("protoc", "protoc-gen-go", "protoc-gen-go-grpc"):
        require_tool(tool)
    options = [f"--{kind}_{what}" for kind in ("go", "go-grpc") for what in (f"out={tmp_path}", f"opt=module={MODULE}")]
    run(["protoc", "-I", "protos", *options, "qspec/v1/generation.proto", "qspec/v1/types.proto"], ROOT)
    expected = {path.name: path.read_text("utf-8") for path in (tmp_path / "v1").iterdir()}
    present = {path.name: path.read_text("utf-8") for path in GENERATED.iterdir()}
    used, installed = _versions(present), _versions(expected)
    if used != installed:
        pytest.skip(f"the code was generated with {used}, installed are {installed}")
    assert present == expected, "run 'make client-protos' and check the result in"


def _versions(files: dict[str, str]) -> set[tuple[str, str]]:
    found = {pair for text in files.values() for pair in _VERSIONS.findall(text)}
    assert found, "no file says what it was generated with"
    return found


def test_code_is_formatted_and_vetted(module: GoModule) -> None:
    require_tool("gofmt")
    assert run(["gofmt", "-l", "."], DIRECTORY) == ""
    module.run("go", "vet", MODULE, f"{MODULE}/examples/generate")


def test_golden_vectors(module: GoModule) -> None:
    assert module.run("go", "test", MODULE).startswith("ok")
