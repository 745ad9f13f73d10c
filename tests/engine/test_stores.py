"""What a store needs beside memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qspec.engine.stores import gpu_turn
from qspec.errors import ModelError
from qspec.interfaces import unwatched
from qspec.quant.methods import Backend


def test_a_cache_that_cannot_be_written_is_one_line_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()  # root may write to a directory whatever its mode
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    runtime = SimpleNamespace(device_uuid=lambda device: "GPU-1")
    monkeypatch.setattr("qspec.memory.cuda_runtime.cuda_runtime", lambda: runtime)
    with (
        pytest.raises(ModelError, match=f"the model cache {tmp_path}/cache cannot be written .*set QSPEC_CACHE_DIR"),
        gpu_turn(Backend.CUDA, unwatched),
    ):
        pass
