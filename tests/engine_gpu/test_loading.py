"""What workers take of a GPU while they load: one after the other, and all of it is listed."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from qspec.config import cache_directory
from qspec.engine.gpu_reserve import GRAPH_BYTES
from qspec.errors import OutOfMemory
from qspec.interfaces import MemoryItem
from tests.engine.stacks import running
from tests.memory.fake_cuda import FakeGpu

LOADING = ("device_weights.stream_weights", "cuda_warm_up.warm_up_verifier", "cuda_warm_up.warm_up_drafter")
CONTEXTS = ("stores.gpu_context", "drafter.gpu_context")


SETTINGS = {"draft_quantization": "fp8", "verify_quantization": "int8", "device": "cuda", "kernels": "auto",
            "max_slots": 2, "kv_tokens": 128, "max_draft_length": 2, "max_batch_rows": 8}


def test_what_will_not_fit_is_refused_with_all_that_the_stack_would_take(
    model: Path, fake_gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_gpu, "total", fake_gpu.used + 2 * GRAPH_BYTES)
    before = fake_gpu.used
    with pytest.raises(OutOfMemory) as refused, running(model, **SETTINGS):
        pass
    rows = [re.split(r" {2,}", line.strip())[1:] for line in str(refused.value).splitlines()]
    for owner, name in [
        ("shared", "weights int8-row"), ("shared", "KV blocks fp16"), ("verifier only", "buffers of passes"),
        ("verifier only", "kernels and CUDA graphs, estimated"), ("drafter only", "weights e4m3-plane"),
        ("drafter only", "buffers of passes"), ("drafter only", "context"),
        ("drafter only", "kernels and CUDA graphs, estimated"),
    ]:
        assert [owner, name] in rows
    assert fake_gpu.used == before


def test_both_workers_list_their_buffers_and_a_detached_drafter_holds_nothing(model: Path, fake_gpu: FakeGpu) -> None:
    with running(model, **SETTINGS) as stack:
        assert stack.drafter is not None
        described = stack.verifier.describe()
        drafting = stack.drafter.attach(described)
        for description in (described, drafting):
            buffers = [item.bytes for item in description.memory if item.name == "buffers of passes"]
            assert len(buffers) == 1 and buffers[0] > 0
        (own,) = [item.bytes for item in drafting.memory if item.name.startswith("weights")]
        attached = fake_gpu.used
        stack.drafter.detach(described.epoch)
        assert attached - fake_gpu.used >= own > 0
        stack.drafter.attach(described)
        assert fake_gpu.used == attached


def test_buffers_are_listed_by_what_torch_takes_for_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 20 << 20  # at once, for buffers of less
    monkeypatch.setattr("qspec.engine.cuda_decoder.free_bytes", lambda _device: 1 << 30)
    monkeypatch.setattr("qspec.engine.cuda_forward.free_bytes", lambda _device: (1 << 30) - taken)
    with running(model, **SETTINGS) as stack:
        assert stack.drafter is not None
        described = stack.verifier.describe()
        for description in (described, stack.drafter.attach(described)):
            assert [item.bytes for item in description.memory if item.name == "buffers of passes"] == [taken]


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
    with running(model, **SETTINGS), FileLock(lock, timeout=0):
        pass  # nobody has the turn once all are loaded
    assert set(held) == {*LOADING, *CONTEXTS}
    assert len(held["device_weights.stream_weights"]) == 2, "the drafter has weights of its own"
    assert all(turn for turns in held.values() for turn in turns)
