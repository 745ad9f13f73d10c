"""Blocks of GGUF files that a format of ours holds are read as they are."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from qspec.models.converted import prepare
from qspec.models.decoder import linear_names
from qspec.models.gguf_blocks import PACKINGS, packing_of, unpack_blocks
from qspec.models.gguf_file import GgufFile
from qspec.models.layer_weights import LayerWeights
from qspec.models.packed_weight import format_of, to_parts
from qspec.models.resolve import resolve
from qspec.quant.codecs import CODECS
from tests.models.quiet import prepare_quietly
from tests.models.tiny_gguf import write_tiny_gguf

FORMATS = {"Q4_0": "int4-g32", "Q4_1": "int4-g32-minimum", "Q8_0": "int8-g32"}


@pytest.mark.parametrize("kind", PACKINGS)
def test_every_code_in_every_place_is_what_ggml_makes_of_it(kind: gguf.GGMLQuantizationType) -> None:
    """All byte values in all places of a block, with scales of both signs and subnormal ones."""
    length = gguf.GGML_QUANT_SIZES[kind][1]
    header = 4 if kind is gguf.GGMLQuantizationType.Q4_1 else 2
    blocks = np.empty((256, 2, length), dtype=np.uint8)
    blocks[..., header:] = (np.arange(256)[:, None, None] + np.arange(length - header)) % 256
    halves = np.random.default_rng(0).normal(size=(256, 2, header // 2)).astype(np.float16)
    halves[::7] *= np.float16(1e-6)
    blocks[..., :header] = halves.view(np.uint8)
    data = blocks.reshape(256, -1)
    weight = unpack_blocks(data, kind, 64)
    expected = torch.from_numpy(gguf.dequantize(data, kind))
    assert torch.equal(weight.decode(), expected)
    low, high = (int(weight.codes.min()), int(weight.codes.max()))
    assert (low, high) == {"Q4_0": (-8, 7), "Q4_1": (0, 15), "Q8_0": (-128, 127)}[kind.name]


@pytest.mark.parametrize("family", ["llama_wide", "gpt2"])
@pytest.mark.parametrize("kind", FORMATS)
def test_stored_parts_stand_for_the_canonical_tensors(kind: str, family: str, tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", family, quantization=gguf.GGMLQuantizationType[kind])
    told: list[str] = []
    model = prepare(str(tmp_path / "model.gguf"), progress=lambda text, _share: told.append(text))
    assert dict(model.stored) == dict.fromkeys(linear_names(model.config), FORMATS[kind])
    assert not any("dequantised" in text for text in told)
    with LayerWeights(model) as weights:
        for name in model.stored:
            parts = weights.parts(name, FORMATS[kind])
            assert torch.equal(CODECS[FORMATS[kind]].decode(parts), weights.tensors[name].t()), name


def test_other_blocks_are_dequantised_and_told(tmp_path: Path, cache: Path) -> None:
    write_tiny_gguf(tmp_path / "model.gguf", "gpt2", quantization=gguf.GGMLQuantizationType.Q5_0)
    told: list[str] = []
    model = prepare(str(tmp_path / "model.gguf"), progress=lambda text, _share: told.append(text))
    assert model.stored == {}
    assert "9 of 9 layers are dequantised: no format here holds Q5_0" in told
    write_tiny_gguf(tmp_path / "plain.gguf", "gpt2", quantization=gguf.GGMLQuantizationType.F16)
    told.clear()
    prepare(str(tmp_path / "plain.gguf"), progress=lambda text, _share: told.append(text))
    assert not any("dequantised" in text for text in told)


def test_floating_point_has_no_packing() -> None:
    kinds = gguf.GGMLQuantizationType
    assert [packing_of(kind) for kind in (kinds.F32, kinds.F16, kinds.BF16)] == [None] * 3
    described = packing_of(kinds.Q6_K)
    assert described is not None
    assert (described.description, described.group_size) == ("Q6_K", None)


def test_smollm2s_own_file_is_read_without_rounding() -> None:
    """Rows of queries and keys as llama.cpp permutes them, too: the first layer's qkv, from the file itself."""
    file = GgufFile(resolve("smollm2").path)
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
    weights_format = format_of([file.packing(name) for name in names], 576)
    assert weights_format == "int4-g32-minimum"
    parts = to_parts([file.read_packed(name) for name in names], weights_format)
    canonical = torch.cat([file.read(name) for name in names])
    assert torch.equal(CODECS[weights_format].decode(parts), canonical)
    file.close()


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path, cache: Path) -> None:
    for name in ("a", "b"):
        write_tiny_gguf(tmp_path / f"{name}.gguf", "gpt2", quantization=gguf.GGMLQuantizationType.Q4_0)
    first, second = (prepare_quietly(tmp_path / f"{name}.gguf") for name in "ab")
    assert first.directory != second.directory
    assert first.fingerprint == second.fingerprint
