"""The import rules catch every kind of violation, and pass what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_imports import ALLOWED, ROOT, find_violations

CLEAN = {
    "qspec/fast.py": "import dataclasses\nfrom . import interfaces\n",
    "qspec/interfaces.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
    "qspec/tensors.py": "import torch\nfrom .fast import dataclasses\n",
    "qspec/late.py": "def load() -> None:\n    import torch\n",
    "drafter/engine.py": "from qspec.tensors import torch\n",
    "verifier/engine.py": "from qspec import tensors\nimport os\nos.cpu_count()\n",
    "coordinator/scheduler.py": "from qspec import fast, late\n",
    "coordinator/supervisor.py": "import os\nimport subprocess\nos.fork()\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a small tree of the shipped packages below ``root``."""
    for package in ALLOWED:
        (root / package).mkdir()
        (root / package / "__init__.py").touch()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    assert find_violations(plant(tmp_path, CLEAN)) == []


def test_this_repository_passes() -> None:
    assert find_violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "line", "message"),
    [
        ("qspec/bad.py", "import os\nimport verifier.engine\n", 2, "qspec must not import verifier"),
        ("qspec/deep/bad.py", "def f() -> None:\n    from coordinator import scheduler\n", 2, "must not import coord"),
        ("drafter/bad.py", "from verifier.engine import os\n", 1, "drafter must not import verifier"),
        ("verifier/bad.py", "import drafter\n", 1, "verifier must not import drafter"),
        ("coordinator/bad.py", "from drafter import engine\n", 1, "coordinator must not import drafter"),
        ("qspec/bad.py", "from tests import fakes\n", 1, "qspec must not import tests"),
        ("coordinator/bad.py", "import torch.nn as nn\n", 1, "must not load torch.nn"),
        ("coordinator/bad.py", "def f() -> None:\n    import transformers\n", 2, "must not load transformers"),
        ("coordinator/bad.py", "from safetensors import torch\n", 1, "must not load safetensors.torch"),
        ("qspec/fast.py", "try:\n    import torch\nfinally:\n    pass\n", 2, "reached from coordinator.scheduler"),
        ("qspec/__init__.py", "import torch\n", 1, "must not load torch"),
        ("qspec/bad.py", "from multiprocessing import shared_memory\n", 1, "starts processes"),
        ("verifier/bad.py", "import torch.multiprocessing\n", 1, "starts processes"),
        ("verifier/bad.py", "from torch import multiprocessing\n", 1, "starts processes"),
        ("coordinator/bad.py", "import subprocess\n", 1, "starts processes"),
        ("drafter/bad.py", "import os\n\nos.execvpe('x', [], {})\n", 3, "starts processes: os.execvpe"),
        ("drafter/bad.py", "from os import posix_spawn\n", 1, "starts processes: os.posix_spawn"),
        ("qspec/bad.py", "import asyncio\nasyncio.create_subprocess_exec('x')\n", 2, "starts processes"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, text: str, line: int, message: str) -> None:
    findings = find_violations(plant(tmp_path, {**CLEAN, file: text}))
    assert any(f.path == Path(file) and f.line == line and message in f.message for f in findings), findings


def test_the_chain_stops_at_what_the_coordinator_does_not_reach(tmp_path: Path) -> None:
    files = {**CLEAN, "coordinator/bad.py": "from qspec.tensors import torch\n"}
    findings = find_violations(plant(tmp_path, files))
    assert {str(finding.path) for finding in findings} == {"qspec/tensors.py"}
