"""What a worker's process tells the libraries that it is about to load."""

from __future__ import annotations

import pytest

from qspec import worker_process
from qspec.config import StackConfig
from qspec.quant.methods import Backend


@pytest.mark.parametrize(
    ("kernels", "machine", "configured", "expected"),
    [
        ("auto", Backend.CPU_NATIVE, Backend.CPU, False),
        ("auto", Backend.CPU, Backend.CPU, True),
        ("torch", Backend.CPU_NATIVE, Backend.CPU, True),
        ("auto", Backend.CPU, Backend.CUDA, False),  # a GPU, and native kernels that were never built
        ("auto", Backend.CPU_NATIVE, Backend.CUDA, False),
    ],
)
def test_who_computes_with_torchs_threads(
    kernels: str, machine: Backend, configured: Backend, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "machine_backend", lambda: machine)
    monkeypatch.setattr(worker_process, "configured_backend", lambda _: configured)
    assert worker_process.computes_by_torch(StackConfig(kernels=kernels)) is expected
