"""Tiny random models of every family, saved as Hugging Face does it, for tests that need files of a real model.

Two layers, hidden size 32, a byte-level vocabulary of some 300 tokens, seeded. ``family`` is one of ``FAMILIES``; the
variants cover grouped-query attention, biases, tied and untied embeddings, Llama 3's rotary scaling, a head dimension
that is not ``hidden / heads``, and (``llama_wide``, ``tied_wide``) layers that every group size divides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CORPUS = ("the quick brown fox jumps over the lazy dog ", "it's 1234 o'clock, isn't it?\n", "aaa bbb abab the the ")
_ROTARY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_ROTARY}),
    "llama_wide": ("Llama", {**_ROTARY, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.1}),
    "tied_wide": ("Llama", {
        **_ROTARY, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.1, "tie_word_embeddings": True,
    }),
    "llama3": ("Llama", {**_ROTARY, "rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama_biased": ("Llama", {**_ROTARY, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "smollm2": ("Llama", {**_ROTARY, "tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {**_ROTARY, "sliding_window": 64}),
    "mistral_tied": ("Mistral", {**_ROTARY, "sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**_ROTARY, "tie_word_embeddings": True}),
    "qwen2_untied": ("Qwen2", {**_ROTARY, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {**_ROTARY, "head_dim": 16}),
    "qwen3_tied": ("Qwen3", {**_ROTARY, "head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "gpt2": ("GPT2", {**_GPT2}),
    "gpt2_untied": ("GPT2", {**_GPT2, "n_inner": 80, "tie_word_embeddings": False}),
}
"""Family variant to (name of the transformers class, configuration)."""


def write_tiny_model(
    directory: Path,
    family: str,
    *,
    seed: int = 0,
    vocab_size: int = 320,
    shards: bool = False,
    bin: bool = False,  # noqa: A002  (the file's suffix)
    chat_template: bool = True,
) -> None:
    """Save model and tokenizer of ``family`` to ``directory``: safetensors or ``.bin``, in one file or in shards."""
    build_tiny_tokenizer(chat_template=chat_template).save_pretrained(directory)
    model = build_tiny_model(family, seed=seed, vocab_size=vocab_size)
    model.save_pretrained(directory, max_shard_size="20KB" if shards else "1GB")
    if bin:
        _rewrite_as_bin(directory)


def build_tiny_model(family: str, *, seed: int = 0, vocab_size: int = 320) -> transformers.PreTrainedModel:
    """The transformers model that ``write_tiny_model`` saves, every weight and bias random."""
    kind, settings = FAMILIES[family]
    settings = {**settings, "vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**settings)
    model_class = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")
    generator = torch.Generator().manual_seed(seed)
    model: transformers.PreTrainedModel = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15 + (1.0 if "norm" in name else 0.0))
    return model


def build_tiny_tokenizer(*, chat_template: bool = True) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: three special tokens, all bytes and a few merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[2],
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )


def edit_config(directory: Path, changes: Mapping[str, Any], *, remove: tuple[str, ...] = ()) -> None:
    """Change ``config.json`` of a saved model."""
    path = directory / "config.json"
    record = json.loads(path.read_text("utf-8"))
    record = {key: value for key, value in {**record, **changes}.items() if key not in remove}
    path.write_text(json.dumps(record), "utf-8")


def _rewrite_as_bin(directory: Path) -> None:
    from safetensors.torch import load_file

    for file in directory.glob("*.safetensors"):
        torch.save(load_file(file), directory / _bin_name(file.name))
        file.unlink()
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        record = json.loads(index.read_text("utf-8"))
        weight_map = {name: _bin_name(file) for name, file in record["weight_map"].items()}
        text = json.dumps({**record, "weight_map": weight_map})
        (directory / "pytorch_model.bin.index.json").write_text(text, "utf-8")
        index.unlink()


def _bin_name(safetensors_name: str) -> str:
    return safetensors_name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
