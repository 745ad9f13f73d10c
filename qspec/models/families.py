"""Families of decoder models, as data.

One decoder runs them all (``qspec.models.decoder``); a family says which architectures it answers to, how its tensors
are named and laid out (``qspec.models.tensor_rules``), and what its configuration means when a key is absent (the
defaults of transformers' configuration classes, because those are what the checkpoint was saved against).
SmolLM2 is the Llama architecture, and GGUF files know Mistral as ``llama`` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qspec.errors import ModelError
from qspec.models.config import Activation, Norm, Positions
from qspec.models.tensor_rules import (
    Dim,
    Feature,
    Part,
    TensorRule,
    layer_norm,
    linear,
    rms_norm,
    transposed_linear,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """Everything that sets one family apart."""

    name: str
    """The family's name, as in ``DecoderConfig.family``."""
    architectures: tuple[str, ...]
    """Names in ``architectures`` of a Hugging Face ``config.json``."""
    model_type: str
    """Its ``model_type``, which decides when ``architectures`` is absent."""
    gguf_architectures: tuple[str, ...]
    """Names in ``general.architecture`` of a GGUF file."""
    rules: tuple[TensorRule, ...]
    """The canonical tensors."""
    gguf_names: Mapping[str, str]
    """GGUF tensor name to Hugging Face name, ``{i}`` for the layer."""
    config_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Names of this family's configuration keys where they are not Llama's."""
    defaults: Mapping[str, Any]
    """What an absent configuration key means, by Llama's names."""
    required_values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Configuration keys that change the computation, with the only value that is supported."""
    base_prefix: str
    """Prefix of everything but ``lm_head``; checkpoints saved from the bare model lack it."""
    ignored_tensors: tuple[str, ...]
    """Patterns of stored buffers that are no weights."""
    gguf_permuted: bool = False
    """Whether llama.cpp's converter reorders query and key rows (architecture ``llama`` only)."""
    conv1d: bool = False
    """Whether linear weights inside the layers are stored as ``[in, out]`` (GPT-2's ``Conv1D``)."""
    norm: Norm = Norm.RMS
    gated_mlp: bool = True
    activation: Activation = Activation.SILU
    positions: Positions = Positions.ROTARY
    qk_norm: bool = False

    def is_conv1d(self, name: str) -> bool:
        """Whether the Hugging Face tensor ``name`` is a linear weight stored as ``[in, out]``."""
        return self.conv1d and re.search(r"\.(attn|mlp)\.c_\w+\.weight$", name) is not None


def _gated_rules(
    *, qkv_bias: Feature | None, out_bias: Feature | None, mlp_bias: Feature | None, qk_norm: bool = False
) -> tuple[TensorRule, ...]:
    """Llama's tensors, with the biases and norms in which its relatives differ."""
    layer, head = "model.layers.{i}", Dim.HEAD
    attention = f"{layer}.self_attn"
    embedding = (Part("model.embed_tokens.weight", (Dim.VOCAB, Dim.HIDDEN)),)
    norms = (
        *rms_norm("layers.{i}.q_norm", f"{attention}.q_norm", head),
        *rms_norm("layers.{i}.k_norm", f"{attention}.k_norm", head),
    )
    qkv = ((f"{attention}.q_proj", Dim.QUERIES), (f"{attention}.k_proj", Dim.KEYS), (f"{attention}.v_proj", Dim.KEYS))
    mlp_in = ((f"{layer}.mlp.gate_proj", Dim.INTERMEDIATE), (f"{layer}.mlp.up_proj", Dim.INTERMEDIATE))
    return (
        TensorRule("embed", embedding, needs=Feature.UNTIED),
        *rms_norm("layers.{i}.attention_norm", f"{layer}.input_layernorm"),
        *linear("layers.{i}.qkv", qkv, Dim.HIDDEN, qkv_bias),
        *(norms if qk_norm else ()),
        *linear("layers.{i}.attention_out", ((f"{attention}.o_proj", Dim.HIDDEN),), Dim.QUERIES, out_bias),
        *rms_norm("layers.{i}.mlp_norm", f"{layer}.post_attention_layernorm"),
        *linear("layers.{i}.mlp_in", mlp_in, Dim.HIDDEN, mlp_bias),
        *linear("layers.{i}.mlp_out", ((f"{layer}.mlp.down_proj", Dim.HIDDEN),), Dim.INTERMEDIATE, mlp_bias),
        *rms_norm("final_norm", "model.norm"),
        TensorRule("lm_head", embedding, transpose=True, needs=Feature.TIED),
        TensorRule("lm_head", (Part("lm_head.weight", (Dim.VOCAB, Dim.HIDDEN)),), True, Feature.UNTIED),
    )


def _gpt2_rules() -> tuple[TensorRule, ...]:
    layer = "transformer.h.{i}"
    embedding = (Part("transformer.wte.weight", (Dim.VOCAB, Dim.HIDDEN)),)
    return (
        TensorRule("embed", embedding, needs=Feature.UNTIED),
        TensorRule("position_embed", (Part("transformer.wpe.weight", (Dim.POSITIONS, Dim.HIDDEN)),)),
        *layer_norm("layers.{i}.attention_norm", f"{layer}.ln_1"),
        *transposed_linear("layers.{i}.qkv", f"{layer}.attn.c_attn", Dim.HIDDEN, Dim.QKV),
        *transposed_linear("layers.{i}.attention_out", f"{layer}.attn.c_proj", Dim.HIDDEN, Dim.HIDDEN),
        *layer_norm("layers.{i}.mlp_norm", f"{layer}.ln_2"),
        *transposed_linear("layers.{i}.mlp_in", f"{layer}.mlp.c_fc", Dim.HIDDEN, Dim.INTERMEDIATE),
        *transposed_linear("layers.{i}.mlp_out", f"{layer}.mlp.c_proj", Dim.INTERMEDIATE, Dim.HIDDEN),
        *layer_norm("final_norm", "transformer.ln_f"),
        TensorRule("lm_head", embedding, transpose=True, needs=Feature.TIED),
        TensorRule("lm_head", (Part("lm_head.weight", (Dim.VOCAB, Dim.HIDDEN)),), True, Feature.UNTIED),
    )


_GATED_GGUF_NAMES = MappingProxyType({
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
})
_GPT2_GGUF_NAMES = MappingProxyType({
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
})
_ROTARY_BUFFERS = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
_GATED_DEFAULTS = MappingProxyType({
    "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
})

LLAMA = FamilySpec(
    name="llama", architectures=("LlamaForCausalLM",), model_type="llama", gguf_architectures=("llama",),
    rules=_gated_rules(qkv_bias=Feature.QKV_BIAS, out_bias=Feature.ATTENTION_OUT_BIAS, mlp_bias=Feature.MLP_BIAS),
    gguf_names=_GATED_GGUF_NAMES, gguf_permuted=True, base_prefix="model.", ignored_tensors=_ROTARY_BUFFERS,
    defaults=MappingProxyType({**_GATED_DEFAULTS, "max_position_embeddings": 2048, "attention_bias": False,
                               "mlp_bias": False}),
)
MISTRAL = FamilySpec(
    name="mistral", architectures=("MistralForCausalLM",), model_type="mistral", gguf_architectures=("mistral",),
    rules=_gated_rules(qkv_bias=None, out_bias=None, mlp_bias=None),
    gguf_names=_GATED_GGUF_NAMES, gguf_permuted=True, base_prefix="model.", ignored_tensors=_ROTARY_BUFFERS,
    defaults=MappingProxyType({**_GATED_DEFAULTS, "max_position_embeddings": 131072, "num_key_value_heads": 8,
                               "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 0}),
)
QWEN2 = FamilySpec(
    name="qwen2", architectures=("Qwen2ForCausalLM",), model_type="qwen2", gguf_architectures=("qwen2",),
    rules=_gated_rules(qkv_bias=Feature.ALWAYS, out_bias=None, mlp_bias=None),
    gguf_names=_GATED_GGUF_NAMES, base_prefix="model.", ignored_tensors=_ROTARY_BUFFERS,
    defaults=MappingProxyType({**_GATED_DEFAULTS, "max_position_embeddings": 32768, "num_key_value_heads": 32,
                               "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}),
)
QWEN3 = FamilySpec(
    name="qwen3", architectures=("Qwen3ForCausalLM",), model_type="qwen3", gguf_architectures=("qwen3",), qk_norm=True,
    rules=_gated_rules(qkv_bias=Feature.QKV_BIAS, out_bias=Feature.ATTENTION_OUT_BIAS, mlp_bias=None, qk_norm=True),
    gguf_names=_GATED_GGUF_NAMES, base_prefix="model.", ignored_tensors=_ROTARY_BUFFERS,
    defaults=MappingProxyType({**QWEN2.defaults, "head_dim": 128, "attention_bias": False}),
)
GPT2 = FamilySpec(
    name="gpt2", architectures=("GPT2LMHeadModel",), model_type="gpt2", gguf_architectures=("gpt2",),
    rules=_gpt2_rules(), gguf_names=_GPT2_GGUF_NAMES, conv1d=True, base_prefix="transformer.",
    ignored_tensors=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
    config_keys=MappingProxyType({
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon",
    }),
    defaults=MappingProxyType({"max_position_embeddings": 1024, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5,
                               "tie_word_embeddings": True}),
    # reorder_and_upcast_attn only changes the precision of the same sums, so it is not among them.
    required_values=MappingProxyType({
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    }),
    norm=Norm.LAYER, gated_mlp=False, activation=Activation.GELU_TANH, positions=Positions.LEARNED,
)

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)


def family_of_config(record: Mapping[str, Any]) -> FamilySpec:
    """The family of a Hugging Face ``config.json``."""
    architectures = record.get("architectures") or []
    for spec in FAMILIES:
        by_type = not architectures and record.get("model_type") == spec.model_type
        if by_type or set(spec.architectures) & set(architectures):
            return spec
    found = ", ".join(architectures) or record.get("model_type") or "none named"
    known = ", ".join(name for spec in FAMILIES for name in spec.architectures)
    raise ModelError(f"unknown architecture {found}; known are {known}")


def family_of_gguf(architecture: str) -> FamilySpec:
    """The family of a GGUF file, from ``general.architecture``."""
    for spec in FAMILIES:
        if architecture in spec.gguf_architectures:
            return spec
    known = ", ".join(name for spec in FAMILIES for name in spec.gguf_architectures)
    raise ModelError(f"unknown GGUF architecture {architecture!r}; known are {known}")
