"""A directory in the converted form is a model, where it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec.errors import ModelError
from qspec.models.converted import describe_converted, prepare_tokenizer
from qspec.models.layer_weights import LayerWeights
from qspec.models.resolve import SourceKind, resolve
from qspec.models.safetensors_writer import SafetensorsWriter
from qspec.quant.codecs import CODECS
from qspec.quant.weight_formats import WEIGHT_FORMATS
from tests.models.packed_checkpoints import write_packed
from tests.models.quiet import prepare_quietly
from tests.tiny_models import write_tiny_model


@pytest.fixture
def ours(tmp_path: Path, cache: Path) -> Path:
    """A converted model with stored codes, outside the cache."""
    write_packed(tmp_path / "packed")
    shutil.copytree(prepare_quietly(tmp_path / "packed").directory, tmp_path / "ours")
    shutil.rmtree(cache)
    return tmp_path / "ours"


def test_it_is_opened_in_place(ours: Path, tmp_path: Path, cache: Path) -> None:
    model = prepare_quietly(ours)
    assert resolve(str(ours)).kind is SourceKind.CONVERTED
    assert model.directory == ours
    assert prepare_tokenizer(str(ours)) == model.tokenizer_directory == ours / "tokenizer"
    assert not cache.exists(), "nothing is copied"
    source = prepare_quietly(tmp_path / "packed")
    assert (model.config, model.fingerprint, model.stored) == (source.config, source.fingerprint, source.stored)
    with model.open_stored() as found, source.open_stored() as expected:
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("file", ["weights.safetensors", "int8.safetensors", "stored.safetensors"])
def test_a_file_that_is_missing_or_cut_is_named(ours: Path, file: str) -> None:
    size = (ours / file).stat().st_size
    (ours / file).write_bytes((ours / file).read_bytes()[:-1])
    refused(ours, rf"{file} has {size - 1} bytes instead of {size}; copy the directory again")
    (ours / file).unlink()
    refused(ours, rf"{file} is missing")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda ours: shutil.rmtree(ours / "tokenizer"), r"tokenizer/\S+ is missing"),
        (lambda ours: (ours / "config.json").unlink(), "is no whole converted model .*FileNotFoundError"),
        (lambda ours: (ours / "converted.json").write_text("{"), "is no whole converted model .*JSONDecodeError"),
        (lambda ours: (ours / "converted.json").write_text("[]"), "is no whole converted model"),
        (lambda ours: edit(ours, sizes={}), "weights.safetensors has [0-9]+ bytes instead of None"),
        (lambda ours: edit(ours, stored={"layers.0.qkv": "int3"}), r"stores weights in unknown formats \(int3\)"),
        (lambda ours: edit(ours, stored=["layers.0.qkv"]), "stores weights in unknown formats"),
    ],
)
def test_a_damaged_directory_is_refused(ours: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(ours)
    refused(ours, message)
    with pytest.raises(ModelError, match=message):
        prepare_tokenizer(str(ours))


def test_without_stored_weights_it_needs_no_file_of_them(tmp_path: Path, cache: Path) -> None:
    write_tiny_model(tmp_path / "tiny", "gpt2")
    shutil.copytree(prepare_quietly(tmp_path / "tiny").directory, tmp_path / "ours")
    assert not (tmp_path / "ours" / "stored.safetensors").exists()
    model = prepare_quietly(tmp_path / "ours")
    assert model.stored == {}
    with LayerWeights(model) as weights:
        assert weights.tell_stored(["lm_head"], "int8-row") is None
        manifest = json.loads((model.directory / "converted.json").read_text("utf-8"))
    edit(tmp_path / "ours", **{key: value for key, value in manifest.items() if key != "stored"})
    assert prepare_quietly(tmp_path / "ours") == model


def test_every_format_can_be_stored(tmp_path: Path, cache: Path) -> None:
    """As a calibration would store it, planes read from what holds them."""
    write_tiny_model(tmp_path / "tiny", "llama_wide")
    model = prepare_quietly(tmp_path / "tiny")
    name = "layers.0.qkv"
    with model.open_weights() as tensors:
        weight = tensors[name].t()
        for stored_format in WEIGHT_FORMATS.keys() - {"fp32"}:
            parts = CODECS[stored_format].encode(-weight, name)  # recognisable
            with SafetensorsWriter(
                model.directory / "stored.safetensors",
                {f"{name}.{part}": (tensor.dtype, tuple(tensor.shape)) for part, tensor in parts.items()},
            ) as file:
                for part, tensor in parts.items():
                    file.write(f"{name}.{part}", tensor)
            describe_converted(
                model.directory, model.config, model.fingerprint, {name: stored_format}, source="", revision=""
            )
            with LayerWeights(prepare_quietly(model.directory)) as weights:
                for wanted, described in WEIGHT_FORMATS.items():
                    if wanted == "fp32":
                        continue
                    held = stored_format in (wanted, described.plane_of)
                    assert weights.is_stored(name, wanted) == held
                    expected = CODECS[wanted].encode(-weight if held else weight, name)
                    found = weights.parts(name, wanted)
                    assert found.keys() == expected.keys()
                    for part, tensor in expected.items():
                        assert torch.equal(found[part].view(torch.uint8), tensor.contiguous().view(torch.uint8))


def test_the_tokenizer_needs_no_torch(ours: Path) -> None:
    code = (
        "import sys; from qspec.models.converted import prepare_tokenizer\n"
        "from qspec.models.tokenizer import Tokenizer\n"
        f"Tokenizer.load(prepare_tokenizer({str(ours)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def edit(ours: Path, **changes: object) -> None:
    """Change ``converted.json``."""
    path = ours / "converted.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def refused(ours: Path, message: str) -> None:
    """That ``prepare`` says so, in one line."""
    with pytest.raises(ModelError, match=message) as caught:
        prepare_quietly(ours)
    assert "\n" not in str(caught.value)
