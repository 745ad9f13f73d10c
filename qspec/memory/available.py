"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """Bytes that can be allocated: the smaller of what the machine has free and what the control group leaves.

    Cached files count as free, as the kernel gives them up when memory is asked for; weights that are mapped from
    files are such, so a second start finds as much as the first.
    """
    limits = [_machine()]
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        group = _control_group(*names)
        if group is not None:
            limits.append(group)
    return min(limits)


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_group(maximum: str, current: str, statistics: str, root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What one version's control group leaves; None where there is no such group, or no limit."""
    try:
        limit = (root / maximum).read_text().strip()
        used = int((root / current).read_text())
        fields = dict(line.split() for line in (root / statistics).read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Version 1 has the same two for the group alone, and prefixed with "total_" for the groups below it as well.
    cached = sum(int(fields.get(f"total_{name}", fields.get(name, 0))) for name in ("active_file", "inactive_file"))
    return None if limit == "max" else max(int(limit) - used + cached, 0)
