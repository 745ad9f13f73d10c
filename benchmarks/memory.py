"""What a tree of processes keeps in memory.

The measure is PSS: a page that n processes map counts 1/n in each, so that the arena, which verifier and drafter share,
counts once in the sum. (A library that unrelated processes have loaded as well counts for less than it would alone.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """One process, in bytes."""

    pid: int
    program: str
    """The module that it runs, or the program."""
    proportional: int
    """PSS."""
    resident: int
    """RSS, every shared page in full."""
    private: int
    """Pages that nobody else maps."""


def descendants(pid: int, proc: Path = PROC) -> list[int]:
    """The living processes below ``pid``, itself left out, parents first."""
    children: dict[int, list[int]] = {}
    for directory in proc.iterdir():
        if directory.name.isdigit() and (parent := _parent(directory)) is not None:
            children.setdefault(parent, []).append(int(directory.name))
    found, pending = [], [pid]
    while pending:
        below = sorted(children.get(pending.pop(0), []))
        found += below
        pending += below
    return found


def read_memory(pid: int, proc: Path = PROC) -> ProcessMemory:
    """The memory of one process of this user. Raises ``OSError`` when it is gone or somebody else's."""
    directory = proc / str(pid)
    fields: dict[str, int] = {}
    for line in (directory / "smaps_rollup").read_text("utf-8").splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024  # the kernel writes kB and means KiB
    arguments = (directory / "cmdline").read_text("utf-8").split("\0")
    program = arguments[arguments.index("-m") + 1] if "-m" in arguments[:-1] else arguments[0]
    return ProcessMemory(
        pid=pid, program=program, proportional=fields["Pss"], resident=fields["Rss"],
        private=fields["Private_Clean"] + fields["Private_Dirty"],
    )


def _parent(directory: Path) -> int | None:
    try:
        status = (directory / "stat").read_text("utf-8", errors="replace")
    except OSError:  # ended meanwhile
        return None
    state, parent = status.rpartition(")")[2].split()[:2]  # the name in parentheses may hold anything
    return None if state == "Z" else int(parent)
