"""The programs that check deployments: skipped loudly where they are missing, unless they have to be there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def find_tool(name: str) -> str | None:
    """The path of ``name``, of this environment or the system; None where neither has it."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def require_tool(name: str) -> str:
    """The path of ``name`` (``find_tool``).

    Without it the test is skipped; it fails with QSPEC_REQUIRE_DEPLOY_TOOLS set, as continuous integration does.
    """
    found = find_tool(name)
    if found is None:
        refuse(f"{name} is not installed: `make deploy-tools` installs it")
    return found


def refuse(reason: str) -> None:
    """Skip the test, or fail where nothing may be skipped."""
    if os.environ.get("QSPEC_REQUIRE_DEPLOY_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)
