"""Tiny GGUF files as llama.cpp's converter would write them from the tiny models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qspec.models.families import GPT2, LLAMA, QWEN2, QWEN3, FamilySpec
from tests.tiny_models import CHAT_TEMPLATE, build_tiny_model, build_tiny_tokenizer

_SPECS: dict[str, FamilySpec] = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "gpt2": GPT2}


def write_tiny_gguf(
    path: Path,
    family: str,
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    pre: str = "gpt-2",
    sentencepiece: bool = False,
) -> None:
    """Write ``family`` of ``tests.tiny_models``: ``metadata`` overrides or adds keys, ``tensors`` adds tensors."""
    model = build_tiny_model(family)
    config = model.config
    spec = next(spec for spec in _SPECS.values() if type(model).__name__ in spec.architectures)
    architecture = spec.gguf_architectures[0]
    gpt2 = spec is GPT2
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": (config.n_inner or 4 * config.n_embd) if gpt2 else config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
    }
    if gpt2:
        values["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        values |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": config.rope_parameters["rope_theta"],
            "rope.dimension_count": head_dim,
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
        }
    writer = gguf.GGUFWriter(path, architecture)
    stated = {f"{architecture}.{key}": value for key, value in values.items()} | dict(metadata or {})
    for key, value in stated.items():
        kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
        writer.add_key_value(key, value, kinds[type(value)])
    if sentencepiece:
        _write_sentencepiece(writer)
    else:
        _write_tokenizer(writer, pre)
    _write_tensors(writer, model, spec, quantization)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    backend = build_tiny_tokenizer().backend_tokenizer
    vocabulary = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if index < 3 else 1 for _, index in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_sentencepiece(writer: gguf.GGUFWriter) -> None:
    pieces = ["▁t", "he", "▁the", "▁te", "ha", "▁", "t", "h", "e", "a"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _write_tensors(
    writer: gguf.GGUFWriter, model: torch.nn.Module, spec: FamilySpec, quantization: gguf.GGMLQuantizationType
) -> None:
    names = {hf: name for name, hf in spec.gguf_names.items()}
    config: Any = model.config
    for hf_name, tensor in model.state_dict().items():
        if hf_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = hf_name.rpartition(".")
        numbers = [part for part in stem.split(".") if part.isdigit()]
        pattern = ".".join("{i}" if part.isdigit() else part for part in stem.split("."))
        name = f"{names[pattern].replace('{i}', numbers[0] if numbers else '')}.{suffix}"
        if spec.gguf_permuted and (".q_proj." in hf_name or ".k_proj." in hf_name):
            heads = config.num_attention_heads if ".q_proj." in hf_name else config.num_key_value_heads
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)  # convert_hf_to_gguf.py, LlamaModel.permute
        if spec.conv1d and ".c_" in hf_name and suffix == "weight":
            tensor = tensor.t()
        values = tensor.contiguous().numpy()
        if quantization is gguf.GGMLQuantizationType.F32 or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, quantization), raw_dtype=quantization)
