"""What a rehearsal needs of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.deploy.tools import find_tool

_PROGRAMS = ("unshare", "nsenter", "setpriv", "mount", "ip")
_TRIAL = "mount -t tmpfs tmpfs /mnt && ip link add trial0 type veth peer name trial1"


def require_namespaces() -> None:
    """Skip where no pod can be rehearsed; fail with QSPEC_REQUIRE_REHEARSAL set, as ``make rehearse-pod`` does."""
    reason = _missing()
    if reason is not None:
        if os.environ.get("QSPEC_REQUIRE_REHEARSAL"):
            pytest.fail(f"no pod can be rehearsed: {reason}")
        pytest.skip(f"no pod can be rehearsed: {reason}")


def _missing() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Linux and root are needed"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not os.environ.get("QSPEC_RENDERED") and find_tool("kubectl") is None:
        absent.append("kubectl (`make deploy-tools` installs it)")
    if absent:
        return f"{', '.join(absent)} not found"
    trial = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", _TRIAL], capture_output=True, text=True,
        check=False)
    return None if trial.returncode == 0 else f"namespaces are refused: {trial.stderr.strip()}"
