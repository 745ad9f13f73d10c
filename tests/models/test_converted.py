"""Converted once, whole or not at all, and found again."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch

from qspec.errors import ModelError
from qspec.models import converted
from qspec.models.converted import cached_tokenizer, prepare, prepare_tokenizer
from tests.models.quiet import prepare_quietly
from tests.tiny_models import edit_config, write_tiny_model


@pytest.fixture
def tiny(tmp_path: Path, cache: Path) -> Path:
    write_tiny_model(tmp_path / "tiny", "gpt2_untied")
    return tmp_path / "tiny"


def entries(cache: Path) -> list[str]:
    """What a user sees in the cache: no partial directories, and locks aside."""
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock"))


def test_the_second_time_nothing_is_converted(tiny: Path, cache: Path) -> None:
    first = prepare_quietly(tiny)
    said: list[str] = []
    second = prepare(str(tiny), progress=lambda text, _share: said.append(text))
    assert first == second
    assert said == []
    assert entries(cache) == [first.directory.name]
    assert first.directory.name.startswith("tiny-")


def test_progress_goes_from_nothing_to_all(tiny: Path) -> None:
    shares: list[float] = []
    prepare(str(tiny), progress=lambda _text, share: None if share is None else shares.append(share))
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_changed_files_and_a_new_converter_are_converted_anew(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_quietly(tiny)
    edit_config(tiny, {"layer_norm_epsilon": 1e-3})
    second = prepare_quietly(tiny)
    assert second.directory != first.directory
    assert (second.config.norm_eps, second.fingerprint != first.fingerprint) == (1e-3, True)
    monkeypatch.setattr(converted, "CONVERTER_VERSION", 10**6)
    third = prepare_quietly(tiny)
    assert third.directory not in (first.directory, second.directory)
    assert third.fingerprint == second.fingerprint


def test_int8_is_symmetric_per_output_channel(tiny: Path) -> None:
    model = prepare_quietly(tiny)
    with model.open_weights() as weights, model.open_int8() as int8:
        linears = [name for name in weights if weights[name].dim() == 2 and name not in ("embed", "position_embed")]
        assert len(linears) == 4 * 2 + 1
        assert set(int8) == {f"{name}.{part}" for name in linears for part in ("codes", "scales")}
        for name in linears:
            codes, scales, weight = int8[f"{name}.codes"], int8[f"{name}.scales"], weights[name].t()
            assert codes.dtype is torch.int8
            assert codes.shape == weight.shape
            assert torch.equal(scales, weight.abs().amax(1) / 127)
            assert (codes.abs().amax(1) == 127).all()
            assert ((codes * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()


def test_a_row_of_zeros_has_codes_zero_and_scale_one(tiny: Path) -> None:
    from qspec.models.int8_weights import quantize_rows

    codes, scales = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert codes.tolist() == [[0, 0], [64, -127]]
    assert scales.tolist() == [1.0, pytest.approx(2 / 127)]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(tiny: Path, cache: Path, failure: BaseException) -> None:
    def fail(_text: str, share: float | None) -> None:
        if share is not None and share > 0.5:
            raise failure

    expected = ModelError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        prepare(str(tiny), progress=fail)
    if expected is ModelError:
        assert "No space left on device" in str(caught.value)
        assert "QSPEC_CACHE_DIR" in str(caught.value)
    assert entries(cache) == []
    assert prepare_quietly(tiny).directory.is_dir()


def test_what_a_killed_conversion_left_is_cleared(tiny: Path, cache: Path) -> None:
    directory = prepare_quietly(tiny).directory
    partial = directory.with_name(f".{directory.name}.partial")
    directory.rename(partial)
    prepare_quietly(tiny)
    assert entries(cache) == [directory.name]


@pytest.mark.parametrize("file", ["weights.safetensors", "int8.safetensors", "config.json", "converted.json"])
def test_a_damaged_cache_entry_is_made_anew(tiny: Path, file: str) -> None:
    model = prepare_quietly(tiny)
    path = model.directory / file
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    assert prepare_quietly(tiny) == model
    assert path.read_bytes() == content


def test_two_at_once_convert_once(tiny: Path) -> None:
    inside, go = threading.Event(), threading.Event()
    said: dict[str, list[str]] = {"first": [], "second": []}

    def first(text: str, _share: float | None) -> None:
        said["first"].append(text)
        inside.set()
        assert go.wait(30)

    def second(text: str, _share: float | None) -> None:
        said["second"].append(text)
        go.set()

    threads = [threading.Thread(target=prepare, args=(str(tiny),), kwargs={"progress": first})]
    threads[0].start()
    assert inside.wait(30)
    threads.append(threading.Thread(target=prepare, args=(str(tiny),), kwargs={"progress": second}))
    threads[1].start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert said["second"] == ["waiting for another process that converts the model"]


def test_a_cache_that_cannot_be_written(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"the model cache .* cannot be written .* QSPEC_CACHE_DIR"):
        prepare_quietly(tiny)


def test_the_tokenizer_alone_then_with_the_model(tiny: Path, cache: Path) -> None:
    assert cached_tokenizer(str(tiny)) is None and not cache.exists()
    alone = prepare_tokenizer(str(tiny))
    assert prepare_tokenizer(str(tiny)) == cached_tokenizer(str(tiny)) == alone
    assert alone.name.endswith("-tokenizer")
    model = prepare_quietly(tiny)
    assert prepare_tokenizer(str(tiny)) == cached_tokenizer(str(tiny)) == model.tokenizer_directory
    assert cached_tokenizer(str(model.directory)) == model.tokenizer_directory
    assert cached_tokenizer(str(tiny / "absent.gguf")) is None
    assert (alone / "tokenizer.json").read_bytes() == (model.tokenizer_directory / "tokenizer.json").read_bytes()


def test_mapped_tensors_outlive_the_file_handle(tiny: Path) -> None:
    with prepare_quietly(tiny).open_weights() as weights:
        embed, shape = weights["embed"], weights.shape("embed")
        expected = embed.clone()
        with pytest.raises(KeyError):
            weights["absent"]
    assert embed.shape == shape
    assert torch.equal(embed, expected)
