"""GPTQ and AWQ checkpoints keep the codes that they came with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qspec.errors import ModelError
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS
from tests.models.packed_checkpoints import Packed, write_packed
from tests.models.quiet import prepare_quietly
from tests.models.test_logits import TOLERANCE, load_decoder, run

FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention_out": ("self_attn.o_proj",),
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"), "mlp_out": ("mlp.down_proj",),
}


def unpacked(parts: dict[str, Tensor], bits: int) -> Tensor:
    """The codes of stored parts, element by element: ``[out, in]`` int64."""
    if bits == 8:
        return parts["codes"].long()
    codes = parts["codes"].long()
    return torch.stack([codes % 16, codes // 16], dim=-1).flatten(1)


def assert_codes(model: ConvertedModel, packed: Packed, bits: int, expected_format: str) -> None:
    """All layers of a Llama hold the codes, scales and zero points that were written."""
    layers = [name for name in linear_names(model.config) if name != "lm_head"]
    assert dict(model.stored) == dict.fromkeys(layers, expected_format)
    described = CODECS[expected_format]
    with LayerWeights(model) as weights:
        for name in layers:
            _, index, kind = name.split(".")
            sources = [f"model.layers.{index}.{source}" for source in FUSED[kind]]
            codes, zeros = (torch.cat([table[s] for s in sources]) for table in (packed.codes, packed.zeros))
            scales = torch.cat([packed.scales[s] for s in sources]).float()
            parts = weights.parts(name, expected_format)
            middle = 1 << (bits - 1)
            if "zeros" in parts:
                assert torch.equal(unpacked(parts, bits), codes)
                assert torch.equal(parts["zeros"].long(), zeros)
            elif bits == 4:
                assert torch.equal(unpacked(parts, bits), (codes - middle) % 16)
            else:
                assert torch.equal(parts["codes"].long(), codes - middle)
            repeat = parts["scales"].shape[1] // scales.shape[1]
            assert torch.equal(parts["scales"], scales.repeat_interleave(repeat, dim=1))
            assert torch.equal(described.decode(parts), weights.tensors[name].t())


def assert_logits(model: ConvertedModel, packed: Packed) -> None:
    """``none`` computes what transformers computes with the dequantised weights."""
    tokens = torch.arange(3, 27)
    with torch.no_grad():
        expected = packed.model(tokens[None]).logits[0]
        found = run(load_decoder(model), tokens, [10, 14])
    assert float((found - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize(
    ("settings", "expected_format"),
    [
        ({"group_size": 32}, "int4-g32"),
        ({"group_size": 64, "version": 2}, "int4-g64"),
        ({"group_size": 128, "zero_biases": True}, "int4-g128"),
        ({"group_size": -1}, "int4-g128"),
        ({"group_size": 64, "symmetric": False}, "int4-g64-asymmetric"),
        ({"group_size": 32, "symmetric": False, "version": 2, "least_zero": 0}, "int4-g32-asymmetric"),
        ({"bits": 8, "group_size": 64}, "int8-g64"),
        ({"bits": 8, "group_size": 32, "version": 2}, "int8-g32"),
        ({"method": "awq", "group_size": 64}, "int4-g64"),
        ({"method": "awq", "group_size": 128, "symmetric": False, "least_zero": 0}, "int4-g128-asymmetric"),
        ({"method": "awq", "group_size": 32, "symmetric": False, "least_zero": 0}, "int4-g32-asymmetric"),
    ],
)
def test_codes_come_through_bit_for_bit(
    settings: dict[str, Any], expected_format: str, tmp_path: Path, cache: Path
) -> None:
    packed = write_packed(tmp_path / "packed", **settings)
    model = prepare_quietly(tmp_path / "packed")
    assert_codes(model, packed, settings.get("bits", 4), expected_format)
    assert_logits(model, packed)
    assert prepare_quietly(tmp_path / "packed") == model, "from the cache"


def test_conv1d_layers_of_gpt2(tmp_path: Path, cache: Path) -> None:
    packed = write_packed(tmp_path / "packed", "gpt2", group_size=32)
    model = prepare_quietly(tmp_path / "packed")
    assert set(model.stored.values()) == {"int4-g32"}
    assert_logits(model, packed)
    with LayerWeights(model) as weights:
        parts = weights.parts("layers.1.mlp_in", "int4-g32")
        assert torch.equal(unpacked(parts, 4), (packed.codes["transformer.h.1.mlp.c_fc"] - 8) % 16)


def test_int8_codes_per_row_are_those_that_are_packed_for_drafting(tmp_path: Path, cache: Path) -> None:
    packed = write_packed(tmp_path / "packed", "llama_biased", bits=8, group_size=-1)
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.down_proj"  # 48 inputs: a row is no group of ours
    model = prepare_quietly(tmp_path / "packed")
    assert model.stored["layers.0.mlp_out"] == "int8-row"
    assert int(packed.codes[name].min()) == 0, "-128 in the codes: a kernel for -127..127 gets rounded ones"
    tensors[f"{name}.qweight"] |= 0x01010101
    save_file(tensors, file)
    model = prepare_quietly(tmp_path / "packed")
    with model.open_int8() as int8:
        assert torch.equal(int8["layers.0.mlp_out.codes"].long(), (packed.codes[name] | 1) - 128)
        assert torch.equal(int8["layers.0.mlp_out.scales"], packed.scales[name][:, 0].float())


def test_inputs_in_another_order_are_dequantised_and_told(tmp_path: Path, cache: Path) -> None:
    packed = write_packed(tmp_path / "packed", symmetric=False, shuffled=True)
    told: list[str] = []
    model = prepare(str(tmp_path / "packed"), progress=lambda text, _share: told.append(text))
    assert model.stored == {}
    assert not (model.directory / "stored.safetensors").exists()
    assert [text for text in told if "desc_act" in text] == [
        "8 of 9 layers are dequantised: no format here holds GPTQ with groups that are no runs of adjacent inputs "
        "(desc_act)"
    ]
    assert_logits(model, packed)


def test_what_no_format_holds_is_told(tmp_path: Path, cache: Path) -> None:
    packed = write_packed(tmp_path / "packed", bits=8, symmetric=False)
    told: list[str] = []
    model = prepare(str(tmp_path / "packed"), progress=lambda text, _share: told.append(text))
    assert model.stored == {}
    line = "8 of 9 layers are dequantised: no format here holds GPTQ 8 bits in groups of 64, asymmetric"
    assert line in told
    assert_logits(model, packed)


def test_codes_belong_to_the_fingerprint(tmp_path: Path, cache: Path) -> None:
    write_packed(tmp_path / "a", version=1)
    write_packed(tmp_path / "b", version=2)
    packed = write_packed(tmp_path / "c", group_size=32)
    first, second, other = (prepare_quietly(tmp_path / name) for name in "abc")
    assert first.fingerprint == second.fingerprint != other.fingerprint
    packed.model.save_pretrained(tmp_path / "c", max_shard_size="1GB")
    plain = prepare_quietly(tmp_path / "c")
    assert plain.stored == {}
    assert plain.fingerprint != other.fingerprint, "the same fp32 weights without codes"
    with plain.open_weights() as weights, other.open_weights() as expected:
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "bitsandbytes"}, r"by 'bitsandbytes' cannot be read; supported are gptq .* and awq"),
        ({"quant_method": "fp8"}, "quantised by 'fp8' cannot be read"),
        ({"quant_method": None}, "quantised by None cannot be read"),
        ({"bits": 3}, "gptq with bits=3 cannot be read"),
        ({"bits": True}, "gptq with bits=True cannot be read"),
        ({"group_size": 0}, "group_size must be positive or -1, got 0"),
        ({"group_size": 32}, r"qweight \[16, 128\], .* do not fit gptq with 4 bits in groups of 32"),
        ({"bits": 8}, "do not fit gptq with 8 bits in groups of 64"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' cannot be read"),
        ({"quant_method": "awq", "version": "gemv"}, "awq with version='gemv'"),
        ({"quant_method": "awq", "zero_point": False}, "zero_point=False cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(changes: dict[str, Any], message: str, tmp_path: Path, cache: Path) -> None:
    write_packed(tmp_path / "packed", changes=changes)
    with pytest.raises(ModelError, match=message) as caught:
        prepare_quietly(tmp_path / "packed")
    assert "\n" not in str(caught.value)


def test_damaged_layers_are_named(tmp_path: Path, cache: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            prepare_quietly(tmp_path / "packed")

    file = tmp_path / "packed" / "model.safetensors"
    write_packed(tmp_path / "packed", symmetric=False, least_zero=0)
    refused("a zero point of 0 does not survive in the packing 'gptq'")
    layer = "model.layers.1.mlp.up_proj"
    for part, damage, message in (
        ("g_idx", lambda t: t + 1, rf"{layer}.g_idx names groups beyond the 2 of its scales"),
        ("scales", lambda t: t * float("nan"), "contains NaN or infinity"),
        ("scales", lambda t: t.int(), f"tensor {layer}.scales is torch.int32, not floating point"),
        ("qweight", lambda t: t.float(), f"tensor {layer}.qweight is torch.float32, not int32"),
        ("qzeros", lambda t: t[:, :-1], rf"{layer}: .* qzeros \[2, 15\].* do not fit"),
        ("bias", lambda t: torch.ones(128), f"tensors that this architecture does not: {layer}.bias"),
    ):
        write_packed(tmp_path / "packed")
        tensors = load_file(file)
        tensors[f"{layer}.{part}"] = damage(tensors.get(f"{layer}.{part}", torch.ones(1))).contiguous()
        save_file(tensors, file)
        refused(message)
    write_packed(tmp_path / "packed")
    file.write_bytes(file.read_bytes()[:-100])
    refused("truncated or no safetensors file")
    write_packed(tmp_path / "packed")
    tensors = load_file(file)
    del tensors[f"{layer}.scales"]
    save_file(tensors, file)
    refused(rf"{layer}: .* scales \[\] do not fit")
