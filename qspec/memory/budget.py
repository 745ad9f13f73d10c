"""The memory budget: what a stack holds and what of it both workers share, as a table for people. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from qspec.errors import OutOfMemory
from qspec.interfaces import MemoryItem
from qspec.memory.available import available_memory


class BudgetEntry(Protocol):
    """One line of a budget; the public API's ``MemoryLine`` is one, too."""

    @property
    def owner(self) -> str:
        """Who holds it."""
        ...

    @property
    def name(self) -> str:
        """What it is for."""
        ...

    @property
    def bytes(self) -> int:
        """How much it is."""
        ...

    @property
    def shared(self) -> bool:
        """Whether both workers use the same bytes."""
        ...

    @property
    def mapped_file(self) -> bool:
        """Whether it is a file, mapped read-only, whose pages all stacks on a host share."""
        ...


@dataclass(frozen=True, slots=True)
class BudgetLine:
    """A ``BudgetEntry`` as plain data."""

    owner: str
    name: str
    bytes: int
    shared: bool
    mapped_file: bool = False


def budget_lines(owner: str, items: Iterable[MemoryItem]) -> list[BudgetLine]:
    """A worker's memory as budget lines; what is shared belongs to the arena."""
    return [
        BudgetLine("arena" if item.shared else owner, item.name, item.bytes, item.shared, item.mapped_file)
        for item in items
    ]


def budget_table(lines: Iterable[BudgetEntry]) -> str:
    """One row per item, and the sum; each shared byte counts once."""
    lines = list(lines)
    rows = [
        (_size(line.bytes), "shared" if line.shared else f"{line.owner} only",
         f"{line.name} (mapped file, shared by all stacks)" if line.mapped_file else line.name)
        for line in lines
    ]
    rows.append((_size(sum(line.bytes for line in lines)), "all", ""))
    width = max(len(owner) for _, owner, _ in rows)
    return "\n".join(f"  {size:>9}  {owner:<{width}}  {name}".rstrip() for size, owner, name in rows)


def require_memory(lines: Iterable[BudgetEntry], available: int | None = None) -> None:
    """Refuse, with the table, what does not fit into the memory that is available now: ``OutOfMemory``.

    ``available``: bytes free on a GPU; None: host memory.

    Mapped files count although the kernel could drop them: weights that are read from the disk for every token are of
    no use. What of them is cached already, for another stack or an earlier one, is part of what is available.
    """
    lines = list(lines)
    needed, place = sum(line.bytes for line in lines), "" if available is None else " on the GPU"
    available = available_memory() if available is None else available
    if needed > available:
        raise OutOfMemory(
            f"{_size(needed)} are needed and {_size(available)} are available{place}; lower kv_tokens or max_slots\n"
            f"{budget_table(lines)}"
        )


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
