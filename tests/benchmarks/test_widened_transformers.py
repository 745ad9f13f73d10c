"""transformers computes the same on widened weights: what is compared with is the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.widened_transformers import transformers_model
from benchmarks.widening import WidenedTensors
from tests.benchmarks.test_widening import TOLERANCE, logits, original


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """An empty cache directory, in use."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["smollm2", "llama_biased"])
def test_logits_are_the_originals(family: str, tmp_path: Path) -> None:
    model = original(tmp_path, family)
    token_ids = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(3))
    widened = WidenedTensors(model.open_weights(), model.config, 2)
    peer = transformers_model(widened.config, widened, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        found = peer(token_ids[None]).logits[0]
    assert (found - logits(model.open_weights(), model.config, token_ids)).abs().max() <= TOLERANCE
    half = transformers_model(widened.config, widened, dtype=torch.float16, device="cpu")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    config = original(tmp_path, "smollm2").config
    for changed in (replace(config, family="qwen2", tied_embeddings=False), config):
        with pytest.raises(ValueError, match="only widened models of Llama"):
            transformers_model(changed, {}, dtype=torch.float32, device="cpu")
