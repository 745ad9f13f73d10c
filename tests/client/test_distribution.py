"""The client's own distribution has what the client imports, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.check_imports import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
USE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from qspec.client import AsyncClient, Client
Client("localhost:1").close()
print(json.dumps({name: module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "qspec"}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, unpacked."""
    directory = tmp_path_factory.mktemp("distribution")
    leave_out = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build")
    for folder in ("qspec", "clients/python"):
        shutil.copytree(ROOT / folder, directory / folder, ignore=leave_out)
    subprocess.run([sys.executable, "-c", BUILD, str(directory)], cwd=directory / "clients" / "python",
                   capture_output=True, timeout=120, check=True)
    (built,) = directory.glob("*.whl")
    assert built.name.startswith("qspec_client-") and built.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(directory / "unpacked")
    return directory / "unpacked"


def test_the_wheel_is_what_the_client_imports(wheel: Path) -> None:
    done = subprocess.run([sys.executable, "-c", USE, str(wheel)], cwd=wheel, capture_output=True, text=True,
                          timeout=60, check=True)
    loaded = {Path(file) for file in json.loads(done.stdout).values()}
    assert {file for file in loaded if not file.is_relative_to(wheel)} == set()
    unused = {file for file in wheel.rglob("*.py") if file not in loaded}
    assert {str(file.relative_to(wheel / "qspec")) for file in unused} <= {  # the workers' messages, for one package
        "v1/drafter_pb2.py", "v1/drafter_pb2_grpc.py", "v1/verifier_pb2.py", "v1/verifier_pb2_grpc.py",
        "v1/types_pb2_grpc.py"}


def test_both_distributions_ask_for_the_same_versions() -> None:
    ours = (ROOT / "clients" / "python" / "pyproject.toml").read_text(encoding="utf-8")
    server = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in ours.partition("dependencies = [")[2].partition("]")[0].split(","):
        assert line.strip() in server
    version = next(line for line in server.splitlines() if line.startswith("version = "))
    assert version in ours
