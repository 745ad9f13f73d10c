"""Reading texts as token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qspec.errors import InvalidInput
from qspec.evaluation.token_sequences import token_sequences
from qspec.models.converted import prepare_tokenizer
from qspec.models.tokenizer import Tokenizer
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """That of a tiny model."""
    directory = tmp_path_factory.mktemp("model")
    write_tiny_model(directory, "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QSPEC_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return Tokenizer.load(prepare_tokenizer(str(directory)))


def _jsonl(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n", "utf-8")
    return path


def test_prompts_are_rendered_as_chats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """prompt, turns and messages are the same chat; an answer follows it; text is taken as it is."""
    messages = [{"role": "user", "content": "the fox"}]
    path = _jsonl(
        tmp_path / "texts.jsonl",
        {"prompt": "the fox"}, {"turns": ["the fox", "and then?"]}, {"messages": messages}, {"text": "the fox"},
        {"prompt": "the fox", "answer": "jumps"},
    )
    chat = tuple(tokenizer.encode_chat(messages))
    assert token_sequences(path, tokenizer, 100) == [
        chat, chat, chat, tuple(tokenizer.encode("the fox")), (*chat, *tokenizer.encode("jumps")),
    ]


def test_what_is_too_long_goes_on_in_another_sequence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing is lost but a last piece of a single token."""
    path = tmp_path / "text.txt"
    path.write_text("abcdefg" * 3, "utf-8")
    ids = tokenizer.encode("abcdefg" * 3)
    pieces = token_sequences(path, tokenizer, 4)
    assert max(map(len, pieces)) == 4
    assert [token for piece in pieces for token in piece] == ids[: len(ids) - (len(ids) % 4 == 1)]


@pytest.mark.parametrize("name", ["texts.jsonl", "text.txt"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tokenizer: Tokenizer, tmp_path: Path, name: str, content: str) -> None:
    """Blank lines are as good as nothing; the error names the option."""
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(InvalidInput, match=r"calibration.*is empty"):
        token_sequences(tmp_path / name, tokenizer, 10, "calibration")


def test_a_single_token_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Nothing can be predicted in it."""
    (tmp_path / "text.txt").write_text("a", "utf-8")
    with pytest.raises(InvalidInput, match="at least two tokens"):
        token_sequences(tmp_path / "text.txt", tokenizer, 10)


@pytest.mark.parametrize("line", ["nonsense", "[1]", "3", '{"turns": []}', '{"prompt": 3}', '{"other": "x"}'])
def test_a_line_of_another_form_is_named(tokenizer: Tokenizer, tmp_path: Path, line: str) -> None:
    """The error says which line."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "abc"}\n' + line + "\n", "utf-8")
    with pytest.raises(InvalidInput, match=r"texts.*line 2 is no JSON object"):
        token_sequences(path, tokenizer, 10)


def test_a_missing_file_and_bytes_that_are_no_text_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With the file's name."""
    with pytest.raises(InvalidInput, match=r"nowhere\.txt cannot be read"):
        token_sequences(tmp_path / "nowhere.txt", tokenizer, 10)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match=r"binary\.txt cannot be read"):
        token_sequences(tmp_path / "binary.txt", tokenizer, 10)


def test_a_text_that_the_tokenizer_can_only_spell_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Greek letters are two byte tokens each here; the same text in Latin letters is welcome."""
    path = tmp_path / "text.txt"
    path.write_text("γιατί ο ουρανός είναι μπλε; " * 3, "utf-8")
    with pytest.raises(InvalidInput, match="language that this model's tokenizer was not made for"):
        token_sequences(path, tokenizer, 10)
    path.write_text("giati o ouranos einai mple; " * 3, "utf-8")
    assert token_sequences(path, tokenizer, 10)
