"""Tests of the native kernels: skipped where they were not built, unless they have to be there."""

from __future__ import annotations

import os

import pytest

from qspec.kernels.native import NativeUnavailable, load


def require_native() -> None:
    """Skip the test without native kernels; fail with QSPEC_REQUIRE_NATIVE set, as continuous integration does."""
    try:
        load()
    except NativeUnavailable as error:
        if os.environ.get("QSPEC_REQUIRE_NATIVE"):
            pytest.fail(str(error))
        pytest.skip(str(error))
