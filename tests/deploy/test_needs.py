"""Where the programs come from that render and rehearse."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.deploy.rehearsal import needs
from tests.deploy.tools import find_tool


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The ``bin`` of an empty environment, on a machine that has no programs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.delenv("QSPEC_RENDERED", raising=False)
    return tmp_path / "bin"


def test_the_environments_own_kubectl_is_found(environment: Path) -> None:
    assert find_tool("kubectl") is None
    (environment / "kubectl").touch(mode=0o755)
    assert find_tool("kubectl") == str(environment / "kubectl")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="asks for Linux and root first")
def test_a_rehearsal_needs_kubectl_only_to_render(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kubectl (`make deploy-tools` installs it) not found" in str(needs._missing(network=True))
    monkeypatch.setenv("QSPEC_RENDERED", "/rendered")
    assert "unshare" in str(needs._missing(network=True)) and "kubectl" not in str(needs._missing(network=True))
