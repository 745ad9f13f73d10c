"""The memory budget as people see it, and as a bound."""

from __future__ import annotations

import pytest

from qspec.errors import OutOfMemory
from qspec.interfaces import MemoryItem
from qspec.memory import budget
from qspec.memory.budget import budget_lines, budget_table, require_memory
from qspec.v1 import generation_pb2 as pb

LINES = [
    pb.MemoryLine(owner="arena", name="weights fp32", bytes=538_000_000, shared=True, mapped_file=True),
    pb.MemoryLine(owner="arena", name="KV blocks", bytes=377_500_000, shared=True),
    pb.MemoryLine(owner="drafter", name="weights int8, packed", bytes=135_000_000, shared=False),
]


def test_table_has_every_item_and_the_sum() -> None:
    assert budget_table(LINES).splitlines() == [
        "   538.0 MB  shared        weights fp32 (mapped file, shared by all stacks)",
        "   377.5 MB  shared        KV blocks",
        "   135.0 MB  drafter only  weights int8, packed",
        "    1.05 GB  all",
    ]


def test_what_is_shared_belongs_to_the_arena() -> None:
    items = [MemoryItem(name="tails", bytes=1, shared=True), MemoryItem(name="codes", bytes=2, shared=False)]
    assert [line.owner for line in budget_lines("drafter", items)] == ["arena", "drafter"]
    (line,) = budget_lines("drafter", [MemoryItem(name="weights", bytes=1, shared=False, mapped_file=True)])
    assert (line.owner, line.mapped_file) == ("drafter", True)


def test_too_much_is_refused_with_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda: 1_050_500_000)
    require_memory(LINES)
    monkeypatch.setattr(budget, "available_memory", lambda: 1_050_499_999)
    with pytest.raises(OutOfMemory, match="lower kv_tokens or max_slots\n.*538.0 MB") as refused:
        require_memory(LINES)
    assert str(refused.value).endswith("1.05 GB  all")
