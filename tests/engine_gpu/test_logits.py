"""Logits on GPU kernels are those of the same fp16 weights on torch's operations, up to fp16 activations; and their
bits do not depend on how rows are computed together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.stacks import running
from tests.engine_gpu.test_text_invariance import on_gpu

TOKENS = [5, 250, 17, 17, 300, 42]


@pytest.mark.parametrize("family", ["tied_least", "untied_least", "qwen2_least", "qwen3_least"])
def test_logits_agree_with_torch_in_any_chunks(family: str, model_of: Callable[[str], Path]) -> None:
    path = model_of(family)
    with running(path, draft_quantization="off", verify_quantization="none:fp16", device="cpu", kernels="torch") as cpu:
        expected = cpu.verifier.cached_decoder(1).score(TOKENS, 8)
    with on_gpu(path, draft_quantization="off") as gpu:
        found: list[Tensor] = [gpu.verifier.cached_decoder(1).score(TOKENS, rows) for rows in (6, 4)]
    assert torch.equal(*found)
    error = (found[0] - expected).norm() / expected.norm()
    assert error < 2e-3


def test_rows_of_planes_lie_as_the_kernels_read_them_best() -> None:
    from qspec.engine.weights import GPU_LINE
    from qspec.kernels.triton.plane_linear import row_stride

    assert {row_stride(inputs) % GPU_LINE for inputs in (64, 128, 4032)} == {0}
    assert row_stride(4032) == 4032 + 64 == -(-4032 // GPU_LINE) * GPU_LINE
