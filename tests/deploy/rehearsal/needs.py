"""What a rehearsal needs of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.deploy.tools import find_tool

_PROGRAMS = ("unshare", "nsenter", "setpriv", "mount")
_TRIAL = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/upper /mnt/work /mnt/root && " \
    "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root"
_NETWORK_TRIAL = "ip link add trial0 type veth peer name trial1"


def require_namespaces(*, network: bool = True) -> None:
    """Skip where no pod can be rehearsed; fail with QSPEC_REQUIRE_REHEARSAL set, as ``make rehearse-pod`` does.

    ``network``: pods have addresses of their own.
    """
    reason = _missing(network)
    if reason is not None:
        if os.environ.get("QSPEC_REQUIRE_REHEARSAL"):
            pytest.fail(f"no pod can be rehearsed: {reason}")
        pytest.skip(f"no pod can be rehearsed: {reason}")


def _missing(network: bool) -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Linux and root are needed"
    absent = [name for name in (*_PROGRAMS, *(["ip"] if network else [])) if shutil.which(name) is None]
    if not os.environ.get("QSPEC_RENDERED") and find_tool("kubectl") is None:
        absent.append("kubectl (`make deploy-tools` installs it)")
    if absent:
        return f"{', '.join(absent)} not found"
    options, script = (["--net"], f"{_TRIAL} && {_NETWORK_TRIAL}") if network else ([], _TRIAL)
    trial = subprocess.run(
        ["unshare", "--mount", *options, "--pid", "--fork", "sh", "-c", script], capture_output=True, text=True,
        timeout=60, check=False)
    return None if trial.returncode == 0 else f"namespaces are refused: {trial.stderr.strip()}"
