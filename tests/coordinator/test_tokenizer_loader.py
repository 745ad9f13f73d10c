"""The tokenizer and its vocabulary are read as soon as they can be, and once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from coordinator.tokenizer_loader import TokenizerLoader
from qspec.constraint import Constraint, ConstraintKind
from qspec.errors import ModelError
from qspec.grammar import Grammars
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from tests.tiny_models import write_tiny_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny model that was not converted."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    write_tiny_model(tmp_path / "model", "llama")
    return str(tmp_path / "model")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Grammars]:
    """Vocabularies that were read."""
    read: list[Grammars] = []
    prepare = Grammars.prepare
    monkeypatch.setattr(Grammars, "prepare", lambda grammars: (prepare(grammars), read.append(grammars))[0])
    return read


def until(prepared: list[Grammars]) -> None:
    ends = time.monotonic() + 20
    while not prepared:
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_what_is_there_is_read_at_once(model: str, prepared: list[Grammars]) -> None:
    directory = prepare_tokenizer(model)
    loader = TokenizerLoader(model)
    until(prepared)
    tokenizer, constraints = loader.wait()
    assert prepared == [constraints]
    assert tokenizer.vocab_fingerprint == Tokenizer.load(directory).vocab_fingerprint
    assert constraints.check(Constraint(ConstraintKind.REGEX, "a+")) is None
    assert constraints.check(Constraint(ConstraintKind.REGEX, "(")) is not None


def test_what_has_to_be_converted_is_left_to_the_verifier(model: str, prepared: list[Grammars], tmp_path: Path) -> None:
    loader = TokenizerLoader(model)
    time.sleep(0.1)
    assert not prepared and not (tmp_path / "cache").exists()
    tokenizer, _ = loader.wait()
    assert len(prepared) == 1 and tokenizer.vocab_size > 0


def test_a_model_that_is_not_there_is_an_error_of_whoever_waits() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        TokenizerLoader("/does/not/exist").wait()
