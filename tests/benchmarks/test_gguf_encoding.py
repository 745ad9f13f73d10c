"""The files that llama.cpp gets: everything of the source but its weights' encoding."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.gguf_encoding import ENCODINGS, encoded_gguf
from qspec.errors import InvalidInput, ModelError
from qspec.models.resolve import ModelSource, resolve
from tests.models.tiny_gguf import write_tiny_gguf
from tests.tiny_models import write_tiny_model

KINDS = gguf.GGMLQuantizationType


def source_of(path: Path, **options: object) -> ModelSource:
    """A tiny GPT-2 in Q4_1, whose rows are all multiples of a block."""
    write_tiny_gguf(path, "gpt2", quantization=KINDS.Q4_1, **options)  # type: ignore[arg-type]
    return resolve(str(path))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def values_of(path: Path) -> dict[str, tuple[KINDS, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    """Type and values of every tensor."""
    return {tensor.name: (tensor.tensor_type, gguf.dequantize(tensor.data, tensor.tensor_type))
            for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_weights_are_encoded_anew_and_norms_stay(encoding: str, tmp_path: Path) -> None:
    source = source_of(tmp_path / "model.gguf")
    before, after = values_of(source.path), values_of(encoded_gguf(source, encoding))
    assert list(before) == list(after)
    for name, (_, values) in before.items():
        kind, found = after[name]
        assert found.shape == values.shape
        if values.ndim == 1:
            assert kind is KINDS.F32
            np.testing.assert_array_equal(found, values)
            continue
        assert kind.name == encoding
        # F16 rounds at the 11th significant bit; Q8_0 to 127 steps of a block's largest value, with its scale in F16.
        bound = np.abs(values) * 2**-11 + 2**-25 if encoding == "F16" else np.abs(values).max() * (0.5 / 127 + 2**-10)
        assert (np.abs(found - values) <= bound).all(), name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_metadata_are_copied_but_for_the_encoding(encoding: str, tmp_path: Path) -> None:
    source = source_of(tmp_path / "model.gguf", metadata={"general.name": "tiny", "general.file_type": 3})
    before = gguf.GGUFReader(source.path).fields
    after = gguf.GGUFReader(encoded_gguf(source, encoding)).fields
    kept = {name for name in before if not name.startswith("GGUF.")} - {"general.file_type"}
    assert "tokenizer.ggml.tokens" in kept
    for name in kept:
        assert after[name].types == before[name].types
        assert after[name].contents() == before[name].contents()
    assert after["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{encoding}"]
    assert after["general.quantization_version"].contents() == gguf.GGML_QUANT_VERSION


def test_a_row_that_is_no_multiple_of_a_block_becomes_f16(tmp_path: Path) -> None:
    odd = np.linspace(-1, 1, 3 * 40, dtype=np.float32).reshape(3, 40)
    kinds = values_of(encoded_gguf(source_of(tmp_path / "model.gguf", tensors={"odd.weight": odd}), "Q8_0"))
    assert kinds["odd.weight"][0] is KINDS.F16


def test_a_file_is_made_once_and_anew_for_another_source(tmp_path: Path, cache: Path) -> None:
    source = source_of(tmp_path / "model.gguf")
    first = encoded_gguf(source, "F16")
    stamp = first.stat().st_mtime_ns
    assert encoded_gguf(source, "F16") == first
    assert first.stat().st_mtime_ns == stamp
    changed = source_of(tmp_path / "model.gguf", metadata={"general.name": "another"})
    second = encoded_gguf(changed, "F16")
    assert second != first
    assert {path for path in (cache / "llama_cpp").iterdir() if path.suffix != ".lock"} == {first, second}


def test_weights_beyond_f16_leave_no_file(tmp_path: Path, cache: Path) -> None:
    large = np.full((2, 32), 70_000, dtype=np.float32)
    source = source_of(tmp_path / "model.gguf", tensors={"large.weight": large})
    with pytest.raises(ModelError, match=r"large\.weight has weights beyond the range of F16"):
        encoded_gguf(source, "F16")
    assert [path for path in (cache / "llama_cpp").iterdir() if path.suffix != ".lock"] == []


def test_a_checkpoint_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", "llama", seed=1)
    with pytest.raises(InvalidInput, match="no GGUF file"):
        encoded_gguf(resolve(str(tmp_path / "model")), "F16")
