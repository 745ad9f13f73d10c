"""The memory budget: what a stack holds, what of it both workers share, as a table for people. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qspec.errors import OutOfMemory
from qspec.interfaces import MemoryItem
from qspec.memory.available import available_memory


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """One line: who holds how many bytes, and for what."""

    owner: str
    name: str
    bytes: int
    shared: bool


def budget_lines(owner: str, items: Iterable[MemoryItem]) -> list[BudgetLine]:
    """A worker's memory as budget lines; what is shared belongs to the arena."""
    return [BudgetLine("arena" if item.shared else owner, item.name, item.bytes, item.shared) for item in items]


def format_budget(lines: Iterable[BudgetLine]) -> str:
    """The budget as a table, several lines of text, with the sums of what is shared and what is private."""
    lines = list(lines)
    rows = [(line.owner, line.name, line.bytes, "shared" if line.shared else "private") for line in lines]
    for kind in ("shared", "private"):
        rows.append(("total", kind, sum(row[2] for row in rows if row[3] == kind), ""))
    width = max(len(name) for _, name, _, _ in rows)
    body = [
        f"  {owner:<9} {name:<{width}} {size / 2**20:>9.1f} MiB  {kind}".rstrip() for owner, name, size, kind in rows
    ]
    return "\n".join(["memory budget", *body])


def require_memory(lines: Iterable[BudgetLine]) -> None:
    """Refuse, with the table, what does not fit into the memory that is available now: ``OutOfMemory``."""
    lines = list(lines)
    needed, available = sum(line.bytes for line in lines), available_memory()
    if needed > available:
        raise OutOfMemory(
            f"{needed / 2**20:.0f} MiB are needed and {available / 2**20:.0f} MiB are available; "
            f"lower kv_tokens or max_slots\n{format_budget(lines)}"
        )
