"""Native kernels are tested where they were built; elsewhere these tests say why they do not run."""

from __future__ import annotations

import pytest

from tests.native_kernels import require_native


@pytest.fixture(autouse=True, scope="package")
def native_kernels() -> None:
    """Skips the package without them, or fails where they have to be there."""
    require_native()
