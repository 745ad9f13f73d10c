"""A widened model as transformers runs it: the peer to compare with, on the same weights.

Canonical tensors go back to the names and shapes of a Hugging Face checkpoint by the rules that brought them here
(``qspec.models.tensor_rules``), one at a time, straight into the model's parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.models.config import DecoderConfig
from qspec.models.families import LLAMA
from qspec.models.tensor_rules import Feature, plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformers_model(
    config: DecoderConfig, tensors: Mapping[str, Tensor], *, dtype: torch.dtype, device: torch.device | str
) -> PreTrainedModel:
    """A ``LlamaForCausalLM`` in ``dtype`` on ``device``, ready to generate. ``ValueError`` for another architecture."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if config.family != LLAMA.name or config.tied_embeddings or config.rope_scaling is not None:
        raise ValueError(f"only widened models of Llama's plain architecture, not {config.family}")
    settings = LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position, tie_word_embeddings=False,
        attention_bias="layers.0.qkv.bias" in tensors, mlp_bias="layers.0.mlp_in.bias" in tensors,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: PreTrainedModel = LlamaForCausalLM(settings).eval()
    finally:
        torch.set_default_dtype(before)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in stored_tensors(config, tensors):
            parameters.pop(name).copy_(tensor)
    assert not parameters, f"not filled: {sorted(parameters)}"
    return model


def stored_tensors(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and value of each tensor of a Llama checkpoint, from the canonical ones: the inverse of a conversion."""
    features = {Feature.UNTIED} | {
        feature
        for feature, bias in (
            (Feature.QKV_BIAS, "qkv"), (Feature.ATTENTION_OUT_BIAS, "attention_out"), (Feature.MLP_BIAS, "mlp_in"))
        if f"layers.0.{bias}.bias" in tensors
    }
    for entry in plan(LLAMA.rules, config, features):
        tensor = tensors[entry.target]
        lengths = [(part.shape[::-1] if entry.transpose else part.shape)[-1] for part in entry.parts]
        for part, values in zip(entry.parts, tensor.split(lengths, dim=-1), strict=True):
            yield part.name, values.t() if entry.transpose else values
