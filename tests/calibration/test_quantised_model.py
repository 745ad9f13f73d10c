"""Making a quantised model: what comes out, what an interruption leaves, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.calibration.config import Algorithm, CalibrationConfig
from qspec.calibration.layer_walk import LayerWalk
from qspec.calibration.quantised_model import quantise_model
from qspec.errors import InvalidInput
from qspec.models.converted import ConvertedModel, prepare
from qspec.models.decoder import Decoder, linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.models.tokenizer import Tokenizer
from qspec.quant.codecs import CODECS
from tests.engine.stacks import quiet
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = "llama_wide"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSPEC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose layers every group size divides."""
    directory = tmp_path_factory.mktemp("source") / "model"
    write_tiny_model(directory, WIDE)
    return directory


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts; the model answers them itself."""
    path = tmp_path_factory.mktemp("texts") / "calibration.jsonl"
    words = "the quick brown fox jumps over the lazy dog and aaa bbb abab isn't it 1234 o'clock "
    lines = [{"prompt": words[start:] + words[:start]} for start in range(0, len(words), 9)]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def config(source: Path, texts: Path, output: Path, **changes: object) -> CalibrationConfig:
    settings = {"model": str(source), "calibration": texts, "output": output, "method": "int4:g32",
                "answer_tokens": 24, "longest": 96}
    return CalibrationConfig(**{**settings, **changes})  # type: ignore[arg-type]


def logits(model: ConvertedModel, weights: str, text: tuple[int, ...]) -> Tensor:
    """Of all positions, with linear layers in the format ``weights``."""
    with LayerWeights(model) as layers, torch.inference_mode():
        tensors = {name: layers.tensors[name] for name in layers.tensors}
        walk = LayerWalk(model.config, tensors, [text])
        for name in linear_names(model.config):
            walk.linears[name].weight = CODECS[weights].decode(layers.parts(name, weights)).t()
        hidden = None
        for half in walk.halves():
            half.advance()
        (hidden,) = walk.hidden()
        return Decoder(model.config, {**tensors, **walk.small}, walk.linears, len(text)).logits(hidden)


def divergence(exact: Tensor, other: Tensor) -> float:
    """Mean KL of the distributions."""
    target = exact.log_softmax(-1)
    return float((target.exp() * (target - other.log_softmax(-1))).sum(-1).mean())


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("method", ["int4:g32", "int4:g64-asymmetric"])
def test_outputs_are_kept_better_than_by_rounding(
    source: Path, texts: Path, tmp_path: Path, algorithm: Algorithm, method: str
) -> None:
    """On a text that was not calibrated on; and ``none`` still is the original model."""
    made = quantise_model(config(source, texts, tmp_path / "out", algorithm=algorithm, method=method), quiet)
    original = prepare(str(source), progress=quiet)
    weights = "int4-" + method.partition(":")[2]
    assert set(made.stored) == set(linear_names(made.config)) and set(made.stored.values()) == {weights}
    tokenizer = Tokenizer.load(original.tokenizer_directory)
    unseen = tuple(tokenizer.encode("it's the lazy brown dog, isn't it? the fox jumps quick over 4321 abab bbb"))
    exact = logits(original, "fp32", unseen)
    torch.testing.assert_close(logits(made, "fp32", unseen), exact, rtol=1e-3, atol=1e-3)
    assert divergence(exact, logits(made, weights, unseen)) < divergence(exact, logits(original, weights, unseen))


def test_a_quantised_model_is_opened_in_place(source: Path, texts: Path, tmp_path: Path) -> None:
    """Its tokenizer and configuration are the original's, its fingerprint is not; nothing else is left behind."""
    made = quantise_model(config(source, texts, tmp_path / "out"), quiet)
    original = prepare(str(source), progress=quiet)
    assert made.directory == (tmp_path / "out").resolve() and made.config == original.config
    assert made.fingerprint != original.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    tokenizers = [Tokenizer.load(model.tokenizer_directory) for model in (made, original)]
    assert tokenizers[0].vocab_fingerprint == tokenizers[1].vocab_fingerprint


class Interrupted(Exception):
    """What stops a calibration."""


def stop_after(steps: int, word: str) -> object:
    """A progress callback that stops the work."""
    seen = 0

    def progress(text: str, _share: float | None) -> None:
        nonlocal seen
        seen += word in text
        if seen > steps:
            raise Interrupted

    return progress


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize(("word", "steps"), [("answering", 0), ("quantising", 1), ("quantising", 4), ("writing", 0)])
def test_an_interrupted_call_goes_on(
    source: Path, texts: Path, tmp_path: Path, algorithm: Algorithm, word: str, steps: int
) -> None:
    """The output is not there before; afterwards it is what an uninterrupted call makes, to the byte."""
    job = config(source, texts, tmp_path / "out", algorithm=algorithm)
    with pytest.raises(Interrupted):
        quantise_model(job, stop_after(steps, word))  # type: ignore[arg-type]
    assert not job.output.exists() and (tmp_path / ".out.partial").is_dir()
    told: list[str] = []
    made = quantise_model(job, lambda text, _share: told.append(text))
    assert any("going on" in text for text in told) == (word != "answering")
    whole = quantise_model(config(source, texts, tmp_path / "whole", algorithm=algorithm), quiet)
    for file in ("stored.safetensors", "weights.safetensors", "int8.safetensors"):
        assert (made.directory / file).read_bytes() == (whole.directory / file).read_bytes()
    assert made.fingerprint == whole.fingerprint


def test_other_settings_start_anew(source: Path, texts: Path, tmp_path: Path) -> None:
    job = config(source, texts, tmp_path / "out")
    with pytest.raises(Interrupted):
        quantise_model(job, stop_after(3, "quantising"))  # type: ignore[arg-type]
    told: list[str] = []
    made = quantise_model(config(source, texts, job.output, method="int4:g64"), lambda text, _share: told.append(text))
    assert not any("going on" in text for text in told)
    assert set(made.stored.values()) == {"int4-g64"}


def test_what_cannot_be_done_is_refused_before_anything_is_written(source: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    (tmp_path / "greek.txt").write_text("γιατί ο ουρανός είναι μπλε; " * 9, "utf-8")
    narrow = tmp_path / "narrow"
    write_tiny_model(narrow, "llama")
    out = tmp_path / "out"
    for job, message in (
        (config(source, texts, tmp_path / "taken"), "output: .*taken exists already"),
        (config(source, tmp_path / "empty.jsonl", out), "calibration: .*is empty"),
        (config(source, tmp_path / "greek.txt", out), "calibration: .*language"),
        (config(source, tmp_path / "missing.txt", out), "calibration: .*cannot be read"),
        (config(source, texts, out, method="int8"), "method: int8 has no 4-bit integers.*int4:g64"),
        (config(source, texts, out, method="int4:nf4"), "method: int4:nf4 has no 4-bit integers"),
        (config(source, texts, out, method="int5"), "unknown method 'int5'"),
        (config(narrow, texts, out, method="int4:g64"), "groups of 64 do not divide its 32 inputs"),
        (config(source, texts, out, longest=1), "longest: must be at least 2"),
        (config(source, texts, texts / "out"), "output"),
    ):
        with pytest.raises(InvalidInput, match=message):
            quantise_model(job, quiet)
    assert not out.exists() and not (tmp_path / ".out.partial").exists()


def test_two_at_once_are_refused(source: Path, texts: Path, tmp_path: Path) -> None:
    job = config(source, texts, tmp_path / "out")

    def another(text: str, _share: float | None) -> None:
        if "quantising" in text:
            with pytest.raises(InvalidInput, match="another process is making"):
                quantise_model(job, quiet)
            raise Interrupted

    with pytest.raises(Interrupted):
        quantise_model(job, another)
