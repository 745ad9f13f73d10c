"""The version of the distribution that runs."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@lru_cache(maxsize=1)
def package_version() -> str:
    """As it was installed."""
    try:
        return version("qspec-serve")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
