"""``fp8`` on a GPU: 16-bit activations while a draft step waits for bytes, e4m3 from as many rows as the table says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from qspec.interfaces import Sampling
from qspec.kernels.triton.elementwise import Activations
from qspec.sequence import Sequence
from tests.engine.stacks import generate, generate_alone, running, sequences

PROMPTS = ((17,), (5, 9))


def test_activations_are_quantised_from_a_number_of_rows_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec.engine import cuda_buffers, cuda_linear

    table = replace(cuda_buffers.gpu_table(), e4m3_rows=2)
    monkeypatch.setattr(cuda_linear, "gpu_table", lambda: table)
    seen: list[int] = []
    real = cuda_linear.fp8_product

    def noted(x: Activations, high: Tensor, one: Tensor) -> Tensor:
        seen.append(x.values.shape[0])
        return real(x, high, one)

    monkeypatch.setattr(cuda_linear, "fp8_product", noted)
    settings = {"draft_quantization": "fp8", "verify_quantization": "none", "device": "cuda", "kernels": "auto",
                "max_slots": 2, "kv_tokens": 128, "max_draft_length": 1, "max_batch_rows": 8}

    def asked(draft_length: int) -> list[Sequence]:
        return sequences(Sampling(), draft_length=draft_length, prompts=PROMPTS, max_tokens=3)

    with running(model, **settings) as stack:
        plain = generate(stack.loop, asked(0))
        assert generate_alone(stack.loop, asked(1)[:1]) == plain[:1]
        assert not seen, "one row waits for the bytes of the weights"
        assert generate(stack.loop, drafted := asked(1)) == plain
        assert sum(each.stats.drafted for each in drafted) > 0
    assert set(seen) == {2}
