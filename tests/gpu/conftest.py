"""Everything here needs a GPU: without one it is skipped, and the reason is told."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def absence() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    missing = [name for name in ("cuda", "pynvml") if find_spec(name) is None]
    return f"no {' and '.join(missing)} to import; pip install 'qspec-serve[gpu]'" if missing else None


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """A GPU."""
    if (reason := absence()) is not None:
        pytest.skip(f"NOT TESTED ON A GPU: {reason}")
