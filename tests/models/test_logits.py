"""Every family computes what transformers computes, from files that transformers saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.models.converted import ConvertedModel
from qspec.models.decoder import Decoder, linear_names
from tests.models.quiet import prepare_quietly
from tests.tiny_models import FAMILIES, build_tiny_model, write_tiny_model

TOLERANCE = 1e-4


class DenseAttention:
    """Plain causal attention over a growing cache of one sequence: the definition, slow and short."""

    def __init__(self, num_layers: int) -> None:
        self._keys: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self._values: list[list[Tensor]] = [[] for _ in range(num_layers)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._keys[layer].append(k)
        self._values[layer].append(v)
        group = q.shape[1] // k.shape[1]
        keys = torch.cat(self._keys[layer]).repeat_interleave(group, dim=1)  # [positions, heads, D]
        values = torch.cat(self._values[layer]).repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, keys) / q.shape[-1] ** 0.5
        rows, positions = q.shape[0], keys.shape[0]
        future = torch.ones(rows, positions, dtype=torch.bool).triu(positions - rows + 1)
        probs = scores.masked_fill(future, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", probs, values).flatten(1)


def load_decoder(model: ConvertedModel, max_positions: int = 128) -> Decoder:
    """The decoder over plain matrix products."""
    weights = model.open_weights()

    def linear(name: str) -> object:
        weight, bias = weights[name], weights.get(f"{name}.bias")
        return lambda x: x @ weight if bias is None else x @ weight + bias

    linears = {name: linear(name) for name in linear_names(model.config)}
    return Decoder(model.config, weights, linears, max_positions)  # type: ignore[arg-type]


def run(decoder: Decoder, token_ids: Tensor, chunks: list[int]) -> Tensor:
    """Logits ``[rows, V]`` of a sequence that is entered in chunks of the given lengths."""
    attention = DenseAttention(decoder.config.num_layers)
    positions = torch.arange(len(token_ids))
    parts = [
        decoder.logits(decoder.hidden(ids, at, attention))
        for ids, at in zip(token_ids.split(chunks), positions.split(chunks), strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path / "model", family)
    token_ids = torch.randint(0, 320, (48,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = build_tiny_model(family)(token_ids[None]).logits[0]
        decoder = load_decoder(prepare_quietly(tmp_path / "model"))
        prefilled = run(decoder, token_ids, [48])
        stepped = run(decoder, token_ids, [11] + [1] * 37)
    assert expected.std() > 0.1, "a test on logits that are all alike could not fail"
    assert (prefilled - expected).abs().max() <= TOLERANCE
    assert (stepped - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_are_there_exactly_when_the_family_has_them(family: str, tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path / "model", family)
    biases = {name.split(".")[-2] for name in prepare_quietly(tmp_path / "model").open_weights() if "bias" in name}
    everything = {"attention_norm", "qkv", "attention_out", "mlp_norm", "mlp_in", "mlp_out", "final_norm"}
    expected = {
        "llama_biased": {"qkv", "attention_out", "mlp_in", "mlp_out"}, "qwen2": {"qkv"}, "qwen2_untied": {"qkv"},
        "qwen3_tied": {"qkv", "attention_out"}, "gpt2": everything, "gpt2_untied": everything,
    }
    assert biases == expected.get(family, set())
