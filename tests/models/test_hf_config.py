"""Configurations old and new, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from qspec.errors import ModelError
from qspec.models.config import DecoderConfig, RopeScaling
from qspec.models.families import family_of_config, family_of_gguf
from qspec.models.hf_config import decoder_config
from tests.tiny_models import FAMILIES

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def read(record: dict[str, Any]) -> DecoderConfig:
    return decoder_config(family_of_config(record), record)


@pytest.mark.parametrize(("kind", "architecture"), [
    ("Llama", "LlamaForCausalLM"), ("Mistral", "MistralForCausalLM"), ("Qwen2", "Qwen2ForCausalLM"),
    ("Qwen3", "Qwen3ForCausalLM"), ("GPT2", "GPT2LMHeadModel"),
])
def test_absent_keys_mean_what_they_mean_in_transformers(kind: str, architecture: str) -> None:
    config = getattr(transformers, f"{kind}Config")(hidden_size=64, num_attention_heads=4, num_hidden_layers=30)
    full = {**config.to_dict(), "architectures": [architecture]}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "n_embd", "n_layer", "n_head", "architectures")
    sparse = {key: value for key, value in full.items() if key in sizes and value is not None}
    if kind in ("Llama", "Qwen2", "Mistral"):
        full["num_key_value_heads"] = sparse["num_key_value_heads"] = 4
    if kind == "Qwen3":
        full["num_key_value_heads"] = sparse["num_key_value_heads"] = 4
    assert read(sparse) == read(full)


def test_rope_of_both_generations() -> None:
    scaled = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
    old = read({**LLAMA, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "llama3"}})
    older = read({**LLAMA, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, "type": "llama3"}})
    new = read({**LLAMA, "rope_parameters": {**LLAMA3, "rope_type": "llama3", "rope_theta": 5e5}})
    assert old == older == new
    assert (new.rope_theta, new.rope_scaling) == (5e5, scaled)
    assert read({**LLAMA, "rope_scaling": None}).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor must be a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"hidden_act": "gelu_new"}, "activation 'gelu_new' is not supported for the llama family"),
        ({"vocab_size": None}, "vocab_size must be a positive integer, got None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a positive number, got 'x'"),
        ({"rope_theta": float("nan")}, "rope_theta must be a positive number"),
        ({"num_key_value_heads": 3}, "4 heads fit"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read({**LLAMA, **changes})


@pytest.mark.parametrize("key", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_gpt2_variants_are_refused(key: str) -> None:
    record = {"architectures": ["GPT2LMHeadModel"], "vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
    assert read(record).intermediate_size == 32
    with pytest.raises(ModelError, match=f"{key}=True is not supported"):
        read({**record, key: True})


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("MistralForCausalLM", {}, 512),
        ("MistralForCausalLM", {"sliding_window": None}, 2048),
        ("MistralForCausalLM", {"sliding_window": 4096}, 2048),
        ("Qwen2ForCausalLM", {}, 2048),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 2}, 2048),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}, 512),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": ["full_attention"] * 2}, 2048),
        ("Qwen3ForCausalLM", {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, 512),
        ("LlamaForCausalLM", {}, 2048),
    ],
)
def test_positions_end_at_the_window(architecture: str, changes: dict[str, Any], expected: int) -> None:
    record = {**LLAMA, "architectures": [architecture], "max_position_embeddings": 2048, "sliding_window": 512,
              "num_key_value_heads": 4, **changes}
    assert read(record).max_position == expected


def test_unknown_architectures_list_the_known_ones() -> None:
    known = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPT2LMHeadModel"
    for record in ({"architectures": ["MambaForCausalLM"], "model_type": "llama"}, {"model_type": "mamba"}, {}):
        with pytest.raises(ModelError, match=f"unknown architecture .*; known are {known}"):
            family_of_config(record)
    with pytest.raises(ModelError, match="unknown GGUF architecture 'mamba'; known are llama, mistral, qwen2"):
        family_of_gguf("mamba")


def test_the_model_type_decides_without_architectures() -> None:
    assert family_of_config({"model_type": "qwen3"}).name == "qwen3"


def test_every_family_variant_is_tested() -> None:
    assert {kind for kind, _ in FAMILIES.values()} == {"Llama", "Mistral", "Qwen2", "Qwen3", "GPT2"}


def test_json_round_trip() -> None:
    config = read({**LLAMA, "rope_parameters": {**LLAMA3, "rope_type": "llama3"}})
    assert DecoderConfig.from_json(config.to_json()) == config
