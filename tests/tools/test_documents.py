"""What the documents name exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_imports import ROOT

DOCUMENTS = [
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "deploy/README.md", "clients/README.md",
    *sorted(str(path.relative_to(ROOT)) for each in ("docs/*.md", "clients/*/README.md") for path in ROOT.glob(each)),
]
FOLDERS = "deploy|docs|clients|qspec|drafter|verifier|coordinator|protos|benchmarks|tools|tests|\\.ci"
PATH = re.compile(rf"(?:{FOLDERS}|src|examples)/[\w./-]*|[\w.-]+\.(?:md|toml|txt)")
ELSEWHERE = {"keys.txt"}
"""Files of users that documents name."""


def find_paths(text: str) -> set[str]:
    """Every path of this repository that stands in backticks."""
    return {path for path in re.findall(r"`([^`\n]+)`", text) if PATH.fullmatch(path)} - ELSEWHERE


def find_links(text: str) -> set[str]:
    """Where links lead that stay in this repository, without their anchors."""
    return {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link} - {""}


def test_paths_are_recognised() -> None:
    text = "`qspec/a.py`, `tests/contract`, [x](OTHER.md#there), `make run`, `org/name`, [y](https://example.org/a)"
    assert (find_paths(text), find_links(text)) == ({"qspec/a.py", "tests/contract"}, {"OTHER.md"})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_paths_exist(document: str) -> None:
    text, folder = (ROOT / document).read_text(encoding="utf-8"), (ROOT / document).parent
    paths = find_paths(text)
    assert paths or folder != ROOT
    assert {path for path in paths if not ((ROOT / path).exists() or (folder / path).exists())} == set()
    assert {link for link in find_links(text) if not (folder / link).exists()} == set()


def test_named_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8")))
        assert named - targets == set(), document


def test_the_options_are_those_of_the_client() -> None:
    command = [sys.executable, "-m", "coordinator.client", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    described = re.findall(r"^\| `(--[a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(described) == set(re.findall(r"^  (--[a-z-]+)", shown, flags=re.MULTILINE))


def test_the_prompts_are_well_formed() -> None:
    lines = Path(ROOT / "benchmarks" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line) for line in lines]
    assert len(prompts) == 40
    assert len({prompt["question_id"] for prompt in prompts}) == 40
    assert len({prompt["turns"][0] for prompt in prompts}) == 40
    for prompt in prompts:
        assert prompt.keys() == {"question_id", "category", "turns"}
        assert prompt["category"].strip()
        assert all(turn.strip() for turn in prompt["turns"])


def test_every_pin_of_a_dependency_is_there() -> None:
    """A package that pyproject.toml names without a pin would be installed in a version that nobody tested."""
    pattern = r"^([\w.-]+)=="
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = {name.lower().replace("_", "-") for name in re.findall(pattern, constraints, flags=re.MULTILINE)}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^    "([\w.-]+?)(?:[=<>;].*?)?",', project.split("[tool.")[0], flags=re.MULTILINE)
    needed = {name.lower().replace("_", "-") for name in named if not name[0].isupper()}
    assert {"torch", "grpcio", "pytest"} <= needed
    assert needed - pinned == set()
