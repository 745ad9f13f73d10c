"""Tests on a real GPU: ``make test-gpu``. Elsewhere each is skipped, by name."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, and skip them where there is no GPU, or where kernels are interpreted."""
    missing = [name for name in ("cuda", "pynvml") if find_spec(name) is None]
    reason = None
    if not torch.cuda.is_available():
        reason = "needs an NVIDIA GPU: run `make test-gpu` on a machine that has one"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        reason = "TRITON_INTERPRET=1: kernels would not run on the GPU"
    elif missing:
        reason = f"no {' and '.join(missing)} to import; pip install 'qspec-serve[gpu]'"
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("gpu")
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """The GPU."""
    torch.manual_seed(20260801)
    return torch.device("cuda")
