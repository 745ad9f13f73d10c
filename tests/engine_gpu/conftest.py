"""The engine on a GPU, without one: Triton's interpreter, and a CUDA runtime whose memory is the host's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.kernels.triton.conftest  # noqa: F401  (chooses the interpreter before any kernel is imported)
from qspec.interfaces import MemoryItem
from tests.memory.fake_cuda import FakeCudaRuntime, FakeGpu
from tests.tiny_models import FAMILIES, write_tiny_model

SMALLEST = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""The smallest that the kernels take: the interpreter needs a tenth of a second for a row of a step."""
OWN_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied_least": ("Llama", {}),
    "untied_least": ("Llama", {"tie_word_embeddings": False}),
    "qwen2_least": ("Qwen2", {}),
    "qwen3_least": ("Qwen3", {"head_dim": 32}),
}

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="package")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The directory of a tiny model by family, written once, and a cache of its own for conversions."""
    directory = tmp_path_factory.mktemp("tiny")

    def written(family: str) -> Path:
        if not (directory / family).exists():
            write_tiny_model(directory / family, family)
        return directory / family

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        for family, (kind, changes) in OWN_FAMILIES.items():
            patch.setitem(FAMILIES, family, (kind, {**FAMILIES["tied_wide"][1], **SMALLEST, **changes}))
        yield written


@pytest.fixture(scope="package")
def model(model_of: Callable[[str], Path]) -> Path:
    """One whose layers the kernels can multiply: tied, so that the embedding is read out of planes."""
    return model_of("tied_least")


@pytest.fixture(autouse=True, scope="package")
def fake_gpu() -> Iterator[FakeGpu]:
    """A GPU in host memory that this process uses."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: tests/gpu runs the engine on it")
    gpu = FakeGpu()
    runtime = FakeCudaRuntime(gpu).runtime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qspec.memory.cuda_arena.cuda_runtime", lambda: runtime)
        patch.setattr("qspec.engine.gpu_turn.cuda_runtime", lambda: runtime)
        patch.setattr("qspec.engine.stores.gpu_context", lambda: MemoryItem(name="context", bytes=0, shared=False))
        patch.setattr("qspec.engine.drafter.gpu_context", lambda: MemoryItem(name="context", bytes=0, shared=False))
        patch.setattr("qspec.engine.gpu_support.machine_absence", lambda: None)
        yield gpu


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
