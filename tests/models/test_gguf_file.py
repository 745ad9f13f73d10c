"""GGUF files give the model that they were converted from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qspec.errors import ModelError
from qspec.models.config import RopeScaling
from qspec.models.tokenizer import Tokenizer
from tests.models.quiet import prepare_quietly
from tests.models.tiny_gguf import write_tiny_gguf
from tests.tiny_models import write_tiny_model


@pytest.mark.parametrize(
    "family",
    ["llama", "llama_biased", "smollm2", "qwen2", "qwen2_untied", "qwen3", "qwen3_tied", "gpt2", "gpt2_untied"],
)
def test_equal_to_the_hugging_face_checkpoint(family: str, tmp_path: Path, cache: Path) -> None:
    # AutoTokenizer splits text in Qwen2's way for that architecture, whatever the saved tokenizer says
    write_tiny_gguf(tmp_path / "model.gguf", family, pre="qwen2" if family.startswith("qwen2") else "gpt-2")
    write_tiny_model(tmp_path / "model", family)
    found, expected = prepare_quietly(tmp_path / "model.gguf"), prepare_quietly(tmp_path / "model")
    with found.open_weights() as found_weights, expected.open_weights() as expected_weights:
        assert set(found_weights) == set(expected_weights)
        for name, tensor in expected_weights.items():
            assert torch.equal(found_weights[name], tensor), name
    approximate = {**expected.config.to_json(), "norm_eps": pytest.approx(expected.config.norm_eps)}
    assert found.config.to_json() == approximate
    tokenizers = [Tokenizer.load(model.tokenizer_directory) for model in (found, expected)]
    text = "the quick 12 <|im_start|>isn't 😀"
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].vocab_fingerprint == tokenizers[1].vocab_fingerprint
    chat = [{"role": "user", "content": text}]
    assert tokenizers[0].encode_chat(chat) == tokenizers[1].encode_chat(chat)
    assert tokenizers[0].eos_token_ids == tokenizers[1].eos_token_ids == {2}


def test_quantised_blocks_are_dequantised(tmp_path: Path, cache: Path) -> None:
    for kind in ("F32", "Q8_0"):
        write_tiny_gguf(tmp_path / f"{kind}.gguf", "gpt2", quantization=gguf.GGMLQuantizationType[kind])
    exact, rounded = (prepare_quietly(tmp_path / f"{kind}.gguf").open_weights() for kind in ("F32", "Q8_0"))
    for name in ("lm_head", "layers.1.qkv", "layers.0.mlp_out"):
        error = (exact[name] - rounded[name]).abs().max()
        assert 0 < error < exact[name].abs().max() / 127


def test_llama3_scaling_comes_back_from_its_divisors(tmp_path: Path, cache: Path) -> None:
    expected = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
    divisors = (plain / scaled).numpy()
    assert divisors.min() == 1
    assert divisors.max() == 32
    base = {"llama.rope.freq_base": 500000.0}
    write_tiny_gguf(tmp_path / "a.gguf", "llama", tensors={"rope_freqs.weight": divisors}, metadata=base)
    assert prepare_quietly(tmp_path / "a.gguf").config.rope_scaling == expected
    write_tiny_gguf(tmp_path / "b.gguf", "llama", tensors={"rope_freqs.weight": np.full(4, 2, np.float32)})
    _assert_refused(tmp_path / "b.gguf", "in another way than Llama 3")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type='yarn' is not supported"),
        ({"llama.expert_count": 8}, "expert_count=8 is not supported"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count=4 is not supported"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale is not supported"),
        ({"llama.block_count": 3}, "lacks model.layers.2"),
        ({"llama.block_count": 1}, "does not: model.layers.1"),
        ({"llama.attention.head_count_kv": 4}, "does not fit its configuration: model.layers.0.self_attn.k_proj"),
    ],
)
def test_what_is_not_supported_is_named(
    metadata: dict[str, Any], message: str, tmp_path: Path, cache: Path
) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "llama", metadata=metadata)
    _assert_refused(tmp_path / "model.gguf", message)


def test_a_sentencepiece_vocabulary(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "llama", sentencepiece=True)
    tokenizer = Tokenizer.load(prepare_quietly(tmp_path / "model.gguf").tokenizer_directory)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the tea", "hat 😀", "  the", "<s>the"):
        assert tokenizer.encode(text) == expected(text).input_ids
    token_ids = tokenizer.encode("the é")
    assert token_ids[0] == 1, "llama.cpp adds BOS to a SentencePiece vocabulary that does not say otherwise"
    assert (tokenizer.decode(token_ids), tokenizer.decode(token_ids[1:2])) == ("the é", "the")
    assert not tokenizer.settles(3 + 0xC3)
    assert tokenizer.settles(token_ids[1])


def test_unknown_tensors_and_pre_tokenizers(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "a.gguf", "llama", tensors={"blk.0.ffn_gate_inp.weight": np.ones((2, 32), np.float32)})
    _assert_refused(tmp_path / "a.gguf", "does not: blk.0.ffn_gate_inp.weight")
    write_tiny_gguf(tmp_path / "b.gguf", "llama", pre="chameleon")
    _assert_refused(tmp_path / "b.gguf", "pre-tokenizer 'chameleon' is not supported; known are default, gpt-2, smollm")


def test_truncated_and_foreign_files(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    write_tiny_gguf(file, "llama")
    content = file.read_bytes()
    cuts = [5, 8, 20, 24, 30, 60, 200, 2000, 9000, len(content) // 2, len(content) - 1]
    for cut in cuts:
        file.write_bytes(content[:cut])
        _assert_refused(file, "truncated or damaged")
    for foreign in (b"", b"PK\x03\x04", b"\x89PNG" * 20):
        file.write_bytes(foreign)
        _assert_refused(file, "is no GGUF file")
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for at in rng.integers(4, 400, 3):
            damaged[at] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            prepare_quietly(file)
        except ModelError as error:
            assert "\n" not in str(error)


def _assert_refused(file: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        prepare_quietly(file)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)
