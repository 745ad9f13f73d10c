"""What workers take of a GPU while they load: one after the other, and all of it is listed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from qspec.config import cache_directory
from qspec.interfaces import MemoryItem
from tests.engine.stacks import running
from tests.memory.fake_cuda import FakeGpu

LOADING = ("device_weights.stream_weights", "cuda_warm_up.warm_up_verifier", "cuda_warm_up.warm_up_drafter")
CONTEXTS = ("stores.gpu_context", "drafter.gpu_context")


def test_everything_that_is_measured_happens_in_the_process_s_turn(
    model: Path, fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = cache_directory() / f"GPU-{fake_gpu.uuid}.lock"
    held: dict[str, list[bool]] = {}

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            try:
                with FileLock(lock, timeout=0):
                    held.setdefault(name, []).append(False)
            except Timeout:
                held.setdefault(name, []).append(True)
            return real(*arguments, **named)
        return noted

    for name in LOADING:
        where, _, function = name.partition(".")
        module = import_module(f"qspec.engine.{where}")
        monkeypatch.setattr(module, function, noting(name, getattr(module, function)))
    for name in CONTEXTS:
        context = MemoryItem(name="context", bytes=0, shared=False)
        monkeypatch.setattr(f"qspec.engine.{name}", noting(name, lambda context=context: context))
    with running(model, draft_quantization="fp8", verify_quantization="int8", device="cuda", kernels="auto",
                 max_slots=2, kv_tokens=128, max_draft_length=2, max_batch_rows=8), FileLock(lock, timeout=0):
        pass  # nobody has the turn once all are loaded
    assert set(held) == {*LOADING, *CONTEXTS}
    assert len(held["device_weights.stream_weights"]) == 2, "the drafter has weights of its own"
    assert all(turn for turns in held.values() for turn in turns)
