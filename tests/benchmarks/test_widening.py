"""A widened model computes what the original does, for every family, in logits and in text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.widened_model import WidenedWeights, write_widened
from benchmarks.widening import WidenedTensors, widen_weight, widened_fingerprint
from qspec.errors import InvalidInput
from qspec.models.config import DecoderConfig
from qspec.models.converted import ConvertedModel
from qspec.models.decoder import Decoder, linear_names
from tests.engine.stacks import generate, running, sequences
from tests.models.quiet import prepare_quietly
from tests.models.test_logits import DenseAttention
from tests.tiny_models import write_tiny_model

TOLERANCE = 1e-3
FAMILIES = ("llama", "smollm2", "llama_biased", "qwen2", "qwen3_tied", "gpt2", "gpt2_untied")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """An empty cache directory, in use."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(directory))
    return directory


def original(tmp_path: Path, family: str) -> ConvertedModel:
    write_tiny_model(tmp_path / family, family)
    return prepare_quietly(tmp_path / family)


def logits(source: Mapping[str, Tensor], config: DecoderConfig, token_ids: Tensor) -> Tensor:
    tensors = {name: source[name] for name in source}

    def linear(name: str) -> object:
        weight, bias = tensors[name], tensors.get(f"{name}.bias")
        return lambda x: x @ weight if bias is None else x @ weight + bias

    linears = {name: linear(name) for name in linear_names(config)}
    decoder = Decoder(config, tensors, linears, 128)  # type: ignore[arg-type]
    hidden = decoder.hidden(token_ids, torch.arange(len(token_ids)), DenseAttention(config.num_layers))
    return decoder.logits(hidden)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_originals(family: str, factor: int, tmp_path: Path) -> None:
    model = original(tmp_path, family)
    token_ids = torch.randint(0, 320, (48,), generator=torch.Generator().manual_seed(7))
    tensors = model.open_weights()
    expected = logits(tensors, model.config, token_ids)
    widened = WidenedTensors(tensors, model.config, factor)
    assert widened.config.hidden_size == factor * model.config.hidden_size
    assert expected.std() > 0.1, "a test on logits that are all alike could not fail"
    assert (logits(widened, widened.config, token_ids) - expected).abs().max() <= TOLERANCE


def test_shapes_are_known_beforehand(tmp_path: Path) -> None:
    for family in FAMILIES:
        model = original(tmp_path, family)
        widened = WidenedTensors(model.open_weights(), model.config, 3)
        assert len(widened) == len(list(widened))
        for name in widened:
            tensor = widened[name]
            assert (tuple(tensor.shape), tensor.is_contiguous()) == (widened.shape(name), True), (family, name)


def test_copies_differ_and_their_noise_sums_to_nothing() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    widened = widen_weight(weight, 4, 4, torch.Generator().manual_seed(2)).view(4, 40, 4, 30)
    torch.testing.assert_close(widened.sum(0), weight.unsqueeze(1).expand(-1, 4, -1))
    noise = widened - (weight / 4).unsqueeze(1)
    expected = float(weight.std()) / 4 * (3 / 4) ** 0.5  # of four numbers whose mean was taken away
    assert float(noise.std()) == pytest.approx(expected, rel=0.05)
    assert not torch.equal(widened[0, :, 0], widened[1, :, 0])


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    model = original(tmp_path, "smollm2")
    first, again, other = (WidenedTensors(model.open_weights(), model.config, 2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first["lm_head"], again["lm_head"])
    assert not torch.equal(first["lm_head"], other["lm_head"])
    cpu = torch.device("cpu")
    assert widened_fingerprint("f", 2, 5, cpu) != widened_fingerprint("f", 2, 6, cpu)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_written_model_says_what_the_original_says(factor: int, tmp_path: Path) -> None:
    model = original(tmp_path, "smollm2")
    directory = tmp_path / "widened"
    written = write_widened(model, factor, directory, seed=0, progress=lambda text, share: None)
    with WidenedWeights(model, factor) as widened:
        assert (written.fingerprint, written.config) == (widened.fingerprint, widened.config)
        assert torch.equal(written.open_weights()["layers.1.mlp_in"], widened.tensors["layers.1.mlp_in"])
        assert torch.equal(
            widened.parts("lm_head", "fp32-rows")["rows"], written.open_weights()["lm_head"].t().contiguous())
    texts = []
    for path in (tmp_path / "smollm2", directory):
        with running(path, draft_quantization="off") as stack:
            texts.append(generate(stack.loop, sequences()))
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) > 1, "texts that are all alike could not differ"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    model = original(tmp_path, "smollm2")
    with pytest.raises(InvalidInput, match="exists"):
        write_widened(model, 2, tmp_path, seed=0, progress=lambda text, share: None)
    with pytest.raises(ValueError, match="by 0"):
        WidenedTensors({}, model.config, 0)
