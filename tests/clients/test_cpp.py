"""The C++ client reads and writes the golden vectors, and what it installs is found by another project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.cpp import build
from tests.clients.tools import run
from tools.generate_protos import ROOT

pytestmark = pytest.mark.timeout(500)

README = ROOT / "clients" / "cpp" / "README.md"


def test_golden_vectors() -> None:
    report = run(["ctest", "--test-dir", str(build()), "--output-on-failure", "--verbose"], ROOT)
    assert re.search(r"\d+: [1-9]\d* passed, 0 failed$", report, re.MULTILINE), report


def test_project_of_the_readme_builds_with_what_is_installed(tmp_path: Path) -> None:
    prefix, project = tmp_path / "prefix", tmp_path / "project"
    run(["cmake", "--install", str(build()), "--prefix", str(prefix)], ROOT)
    project.mkdir()
    page = README.read_text("utf-8")
    for language, file in (("cmake", "CMakeLists.txt"), ("cpp", "main.cpp")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        (project / file).write_text(block, "utf-8")
    built = build(project, tmp_path / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    assert "nobody listens" in run([str(built / "hello"), "127.0.0.1:1"], tmp_path)
