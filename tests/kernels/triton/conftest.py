"""These tests run on the GPU where there is one, else in Triton's interpreter, which has to be chosen before kernels
are imported.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch


def _interpret() -> None:
    """Choose the interpreter, and let it read one-element arrays as numbers, which NumPy 2.4 no longer does itself."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index


if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    _interpret()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def source() -> torch.Generator:
    """Random numbers of one seed."""
    return torch.Generator().manual_seed(20260801)
