"""The memory budget as people see it."""

from __future__ import annotations

from coordinator.memory_budget import budget_line, budget_table
from qspec.v1 import generation_pb2 as pb

LINES = [
    pb.MemoryLine(owner="arena", name="weights fp32", bytes=538_000_000, shared=True),
    pb.MemoryLine(owner="arena", name="KV blocks", bytes=377_500_000, shared=True),
    pb.MemoryLine(owner="drafter", name="weights int8, packed", bytes=135_000_000, shared=False),
]


def test_table_has_every_item_and_the_sum() -> None:
    assert budget_table(LINES).splitlines() == [
        "   538.0 MB  shared    weights fp32",
        "   377.5 MB  shared    KV blocks",
        "   135.0 MB  drafter   weights int8, packed",
        "    1.05 GB  all",
    ]


def test_line_sums_by_owner() -> None:
    assert budget_line(LINES) == "1.05 GB (915.5 MB shared, 135.0 MB drafter)"
