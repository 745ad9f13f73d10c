"""What a control group leaves, cached files counted as free."""

from __future__ import annotations

from pathlib import Path

import pytest

from qspec.memory.available import _control_group, available_memory

NAMES = ("max", "current", "stat")


@pytest.mark.parametrize(("statistics", "expected"), [
    ("anon 100\ninactive_file 300\nactive_file 50\nshmem 20\n", 1000 - 700 + 350),
    ("inactive_file 1\nactive_file 2\ntotal_inactive_file 300\ntotal_active_file 50\n", 1000 - 700 + 350),
    ("anon 700\n", 300),
])
def test_cached_files_are_free(tmp_path: Path, statistics: str, expected: int) -> None:
    for name, content in zip(NAMES, ("1000\n", "700\n", statistics), strict=True):
        (tmp_path / name).write_text(content)
    assert _control_group(*NAMES, root=tmp_path) == expected


def test_no_limit_and_no_group_are_none(tmp_path: Path) -> None:
    assert _control_group(*NAMES, root=tmp_path) is None
    for name, content in zip(NAMES, ("max\n", "700\n", ""), strict=True):
        (tmp_path / name).write_text(content)
    assert _control_group(*NAMES, root=tmp_path) is None


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    for name, content in zip(NAMES, ("100\n", "700\n", "inactive_file 5\nactive_file 5\n"), strict=True):
        (tmp_path / name).write_text(content)
    assert _control_group(*NAMES, root=tmp_path) == 0
    assert available_memory() > 0
