"""Tests of the GPU's benchmark that need Triton, without a GPU."""

from __future__ import annotations

import importlib.util

import tests.kernels.triton.conftest  # noqa: F401  (chooses the interpreter before any kernel is imported)

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
