"""Native kernels are tested where they were built; elsewhere these tests say why they do not run."""

from __future__ import annotations

import pytest

from qspec.kernels.native import NativeUnavailable, load


@pytest.fixture(autouse=True, scope="package")
def native_kernels() -> None:
    """Skips the package without them."""
    try:
        load()
    except NativeUnavailable as reason:
        pytest.skip(str(reason))
