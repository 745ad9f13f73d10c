"""Numeric tests on one thread and on two: a library may cut its work up by threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    """One thread unless the test asks for others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, restored_threads: None) -> int:
    """Runs the test with this many threads."""
    count: int = request.param
    torch.set_num_threads(count)
    return count
