"""The toolchains of the clients: skipped loudly where they are missing, unless they have to be there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest


def require_tool(name: str) -> str:
    """The path of a program; without it ``refuse``."""
    found = shutil.which(name)
    return found if found is not None else refuse(f"{name} is not installed")


def require_path(path: Path, what: str) -> None:
    """``refuse`` unless there is something at ``path``."""
    if not path.exists():
        refuse(f"{what} is not installed")


def refuse(reason: str) -> NoReturn:
    """Skip the test; fail with QSPEC_REQUIRE_CLIENT_TOOLS set, as continuous integration does."""
    text = f"{reason}: `make client-tools` installs what the clients are built with"
    if os.environ.get("QSPEC_REQUIRE_CLIENT_TOOLS"):
        pytest.fail(text)
    pytest.skip(text)


def run(command: list[str], directory: Path, environment: dict[str, str] | None = None, *, timeout: float = 300) -> str:
    """Run to the end and return standard output; a failure shows all that the command said."""
    done = subprocess.run(
        command, cwd=directory, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=timeout, check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
