"""The programs that check deployments: skipped loudly where they are missing, unless they have to be there."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest


def require_tool(name: str) -> str:
    """The path of ``name``, of this environment or the system.

    Without it the test is skipped; it fails with QSPEC_REQUIRE_DEPLOY_TOOLS set, as continuous integration does.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        refuse(f"{name} is not installed: `make deploy-tools` installs it")
    return found


def refuse(reason: str) -> None:
    """Skip the test, or fail where nothing may be skipped."""
    if os.environ.get("QSPEC_REQUIRE_DEPLOY_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)
