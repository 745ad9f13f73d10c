"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory() -> int:
    """Bytes that can be allocated: the smaller of what the machine has free and what the control group leaves."""
    limits = [_machine()]
    for maximum, current in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes",
                                                                "memory/memory.usage_in_bytes")):
        group = _control_group(maximum, current)
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


def _control_group(maximum: str, current: str) -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / maximum).read_text().strip()
        used = int((root / current).read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
