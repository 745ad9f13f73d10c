"""How many threads a worker computes with, told to the OpenMP runtime before it is loaded.

GNU's OpenMP reads its environment once, when torch loads it. Its threads spin while they wait for work, by default so
long that two workers on the same cores lose some 9 ms at every change of turns; not at all would double a decoding
step. A bounded spin is the compromise that was measured.

A kernel that wakes both threads of a team on one CPU, and leaves them there while another CPU is idle, makes every
barrier wait for a time slice: 146 ms were seen where 21 are needed, for minutes, on an otherwise idle machine. Threads
are therefore bound, one to a CPU, when there are as many of them as CPUs that may be used. The workers of a stack take
turns, so that binding both to the same CPUs costs nothing; fewer threads than CPUs are left to the kernel, because
several stacks would all be bound to the same first few.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from qspec.interfaces import Progress

_SWITCH_S = 0.0005
_SPIN_COUNT = 30_000
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use, at least 1: its affinity, and the quota of its control groups (v2 and v1)."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, cpus if quota is None else min(cpus, int(quota)))


def cgroup_quota(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota, in CPUs, of the process's control groups and their ancestors; None when there is none."""
    quotas: list[float] = []
    for hierarchy in _lines(membership):
        number, _, rest = hierarchy.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            quotas += [q for group in _ancestors(root, path) if (q := _quota_v2(group)) is not None]
        elif "cpu" in controllers.split(","):
            for mount in (root / "cpu", root / controllers):
                quotas += [q for group in _ancestors(mount, path) if (q := _quota_v1(group)) is not None]
    return min(quotas, default=None)


def configure_threads(threads: int, *, bind: bool = True) -> int:
    """Set OpenMP's environment for ``threads`` threads (0: what the process may use) and return their number.

    Without ``bind`` its threads are left to the kernel: the native kernels bind threads of their own, and OpenMP would
    leave the thread that loads torch on one CPU, and those that it starts with it (a step then took twice its time).
    Variables that are set already stay as they are; with ``threads`` 0 an OMP_NUM_THREADS from outside decides. Call it
    before torch is imported.
    """
    if threads == 0:
        threads = _preset() or usable_cpus()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
    if bind and threads == usable_cpus():
        os.environ.setdefault("OMP_PROC_BIND", "true")
    return threads


def share_interpreter() -> None:
    """Let a thread wait for Python's lock 0.5 ms, not 5, where another one computes.

    In a worker that is the thread that reads the next question while the engine's computes, or the other way round; in
    the coordinator the decoding loop's, while the event loop hands texts out. Rounds take 1 to 15 ms on a GPU.
    """
    sys.setswitchinterval(_SWITCH_S)


def native_threads(threads: int, progress: Progress) -> int:
    """Threads of the native kernels for ``threads`` (0: what the process may use), never more than that.

    A thread more than the process has CPUs would make every step wait for a time slice. One line through ``progress``
    says so when there are fewer than were asked for, or a control group grants less than one CPU.
    """
    usable, quota = usable_cpus(), cgroup_quota()
    asked = threads or _preset() or usable
    if quota is not None and quota < 1:
        progress(f"the control group grants {quota:g} of a CPU: the kernels use 1 thread, and wait", None)
    elif asked > usable:
        progress(f"{asked} threads were asked for, the process may use {usable} CPUs: the kernels use {usable}", None)
    return min(asked, usable)


def _preset() -> int:
    """What OMP_NUM_THREADS says; 0 when it says nothing."""
    preset = os.environ.get("OMP_NUM_THREADS", "")
    return int(preset) if preset.isdigit() else 0


def _ancestors(mount: Path, path: str) -> list[Path]:
    """The group's directory and those above it, up to the mount (all that a container sees may be the mount itself)."""
    group = mount / path.strip().lstrip("/")
    return [directory for directory in (group, *group.parents) if directory == mount or mount in directory.parents]


def _quota_v2(group: Path) -> float | None:
    for line in _lines(group / "cpu.max"):
        quota, _, period = line.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            return int(quota) / int(period)
    return None


def _quota_v1(group: Path) -> float | None:
    quota, period = _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us")
    if quota and period and quota[0].isdigit() and period[0].isdigit() and int(period[0]) > 0:
        return int(quota[0]) / int(period[0])
    return None  # no limit is written as -1


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where it does not exist or may not be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
