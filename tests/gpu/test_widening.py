"""A model is widened where it will be used: on the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import SMOLLM2
from benchmarks.widening import WidenedTensors

pytestmark = pytest.mark.gpu


def test_noise_on_the_gpu_sums_to_nothing() -> None:
    factor, source = 7, torch.Generator().manual_seed(0)
    hidden, middle = SMOLLM2.hidden_size, SMOLLM2.intermediate_size
    tensors = {
        "layers.0.mlp_in": torch.randn(hidden, 2 * middle, generator=source),
        "lm_head": torch.randn(hidden, 1000, generator=source),
    }
    widened = WidenedTensors(tensors, replace(SMOLLM2, vocab_size=1000), factor, device="cuda")
    for name, outputs in (("layers.0.mlp_in", factor), ("lm_head", 1)):
        tensor = widened[name]
        assert (tensor.device.type, tuple(tensor.shape)) == ("cuda", widened.shape(name))
        sums = tensor.view(factor, hidden, -1).sum(0).cpu()
        gate, *up = tensors[name].split(middle, dim=1) if outputs > 1 else (tensors[name],)
        expected = torch.cat([part.repeat(1, outputs) for part in (gate, *up)], dim=1)
        torch.testing.assert_close(sums, expected, rtol=0, atol=1e-5)
    embed = widened["embed"].cpu()
    assert torch.equal(embed, tensors["lm_head"].t().repeat(1, factor))
