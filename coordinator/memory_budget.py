"""The memory of a stack, for people: what both workers share, and what each keeps for itself."""

from __future__ import annotations

from collections.abc import Sequence

from qspec.v1 import generation_pb2 as pb


def budget_table(lines: Sequence[pb.MemoryLine]) -> str:
    """One row per item, and the sum; each shared byte counts once."""
    rows = [(_size(line.bytes), "shared" if line.shared else line.owner, line.name) for line in lines]
    rows.append((_size(sum(line.bytes for line in lines)), "all", ""))
    return "\n".join(f"  {size:>9}  {owner:<8}  {name}".rstrip() for size, owner, name in rows)


def budget_line(lines: Sequence[pb.MemoryLine]) -> str:
    """The same in one line: the sum, and its share per owner."""
    owners = dict.fromkeys("shared" if line.shared else line.owner for line in lines)
    parts = [
        f"{_size(sum(line.bytes for line in lines if ('shared' if line.shared else line.owner) == owner))} {owner}"
        for owner in owners
    ]
    return f"{_size(sum(line.bytes for line in lines))} ({', '.join(parts)})"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
