"""Checkpoints of every form give the same model; damaged and foreign ones give one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qspec.errors import ModelError
from tests.models.quiet import prepare_quietly
from tests.tiny_models import edit_config, write_tiny_model


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_every_form_gives_the_same_model(family: str, tmp_path: Path, cache: Path) -> None:
    found = set()
    for shards in (False, True):
        for binary in (False, True):
            directory = tmp_path / f"{shards}{binary}"
            write_tiny_model(directory, family, shards=shards, bin=binary)
            assert (len(list(directory.glob("*-of-*"))) > 1) == shards
            assert any(directory.glob("*.bin")) == binary
            found.add(prepare_quietly(directory).fingerprint)
    write_tiny_model(tmp_path / "other", family, seed=1)
    assert len(found) == 1
    assert prepare_quietly(tmp_path / "other").fingerprint not in found


def test_half_precision_becomes_fp32(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "llama")
    _edit(tmp_path, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()}))
    stored = load_file(tmp_path / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    with prepare_quietly(tmp_path).open_weights() as weights:
        assert weights["layers.0.mlp_out"].dtype is torch.float32
        assert torch.equal(weights["layers.0.mlp_out"], stored.float().t())


def test_a_bare_models_names_lack_the_prefix(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path / "full", "gpt2")
    write_tiny_model(tmp_path / "bare", "gpt2")

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors.clear()
        # what old checkpoints carry along: the causal mask
        tensors.update({**renamed, "h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.ones(1)})

    _edit(tmp_path / "bare", strip)
    assert prepare_quietly(tmp_path / "bare").fingerprint == prepare_quietly(tmp_path / "full").fingerprint


def test_a_tied_models_copy_of_the_embedding_is_checked(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "smollm2")
    plain = prepare_quietly(tmp_path).fingerprint
    _edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert prepare_quietly(tmp_path).fingerprint == plain
    _edit(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    _assert_refused(tmp_path, "ties lm_head to the embedding.*tie_word_embeddings")


def _drop(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def _put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("model.norm.weight"), "lacks model.norm.weight"),
        (_put("model.norm.weight", torch.ones(31)), r"model.norm.weight is \[31\], the configuration says \[32\]"),
        (_put("model.layers.2.extra", torch.ones(2)), "does not: model.layers.2.extra;"),
        (_put("model.layers.0.self_attn.q_proj.bias", torch.ones(32)), "not: model.layers.0.self_attn.q_proj.bias"),
        (_put("model.norm.weight", torch.full((32,), torch.nan)), "model.norm.weight contains NaN or infinity"),
        (_put("lm_head.weight", torch.full((320, 32), -torch.inf)), "lm_head.weight contains NaN or infinity"),
        (_put("model.norm.weight", torch.ones(32, dtype=torch.int8)), "model.norm.weight is torch.int8"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path, cache: Path
) -> None:
    write_tiny_model(tmp_path, "llama")
    _edit(tmp_path, change)
    _assert_refused(tmp_path, message)


def test_truncated_and_foreign_safetensors(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], content[:100], b"", b"PK\x03\x04" + content):
        file.write_bytes(broken)
        _assert_refused(tmp_path, "truncated or no safetensors file")


class Malicious:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_truncated_and_foreign_bin(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_model(tmp_path, "llama", bin=True)
    file = tmp_path / "pytorch_model.bin"
    content = file.read_bytes()
    evil = pickle.dumps({"model.norm.weight": Malicious()}, protocol=2)
    for broken in (content[:-1], content[: len(content) // 2], content[:100], b"", b"\x89PNG\r\n", evil):
        file.write_bytes(broken)
        _assert_refused(tmp_path, "truncated or no plain PyTorch state dict")
    assert "executed" not in capsys.readouterr().out


def test_a_missing_shard_and_a_shard_elsewhere(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "llama", shards=True)
    index = tmp_path / "model.safetensors.index.json"
    next(tmp_path.glob("model-00002-*")).unlink()
    _assert_refused(tmp_path, "model-00002-.* is missing")
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}), "utf-8")
    _assert_refused(tmp_path, "names a shard outside its directory")
    index.write_text("[]", "utf-8")
    _assert_refused(tmp_path, "is no index of shards")


def test_no_weights_and_no_json(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    _assert_refused(tmp_path, "neither model.safetensors nor pytorch_model.bin")
    (tmp_path / "config.json").write_text("{", "utf-8")
    _assert_refused(tmp_path, "config.json is no JSON")


def test_a_config_that_does_not_fit_its_weights(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path, "llama")
    edit_config(tmp_path, {"num_hidden_layers": 3})
    _assert_refused(tmp_path, r"lacks model.layers.2.* and \d+ more")


def _edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _assert_refused(directory: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        prepare_quietly(directory)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)
