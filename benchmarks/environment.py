"""Where a measurement was made: without it, its figures mean nothing later."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qspec.threads import usable_cpus

ROOT = Path(__file__).resolve().parent.parent
COMMIT_VARIABLE = "QSPEC_COMMIT"
"""Names the commit where the sources came without their history."""
_LIBRARIES = ("torch", "transformers", "grpcio", "protobuf")


def describe_environment() -> dict[str, Any]:
    """Machine, library versions, commit and date, JSON-able; what cannot be found out is None."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores_usable": usable_cpus(),
        "memory_bytes": _memory_bytes(),
        "load_average": list(os.getloadavg()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{library: _version(library) for library in _LIBRARIES},
        "commit": (named := os.environ.get(COMMIT_VARIABLE)) or _git("rev-parse", "--verify", "--quiet", "HEAD"),
        "modified": None if named or (changes := _git("status", "--porcelain")) is None else bool(changes),
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about this checkout; None without git, or outside a repository."""
    program = shutil.which("git")
    if program is None:
        return None
    result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _memory_bytes() -> int | None:
    total = _field(Path("/proc/meminfo"), "MemTotal")
    return None if total is None else int(total.split()[0]) * 1024


def _field(path: Path, name: str) -> str | None:
    """The first value of ``name`` in a file of lines ``name : value``."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        key, separator, value = line.partition(":")
        if separator and key.strip() == name:
            return value.strip()
    return None
