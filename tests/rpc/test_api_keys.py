"""API keys: drawn, hashed, kept in a file, and asked for."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from qspec.__main__ import main
from qspec.errors import InvalidInput
from qspec.rpc.api_keys import bearer, key_line, new_key, read_api_keys

KEY = "a-key-of-enough-letters"


def test_the_command_draws_a_key_whose_line_the_server_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hash-key", "alice"]) == 0
    shown = capsys.readouterr()
    key = shown.err.split()[-1]
    file = tmp_path / "keys.txt"
    file.write_text(f"# who may call\n\n{shown.out}", encoding="utf-8")
    assert key not in shown.out and len(key) > 40
    assert read_api_keys(file).name_of([bearer(key)]) == "alice"
    assert new_key() != new_key()


def test_a_key_that_somebody_has_is_hashed_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{KEY}\n"))
    assert main(["hash-key", "bob", "--stdin"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"bob sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n" and shown.err == ""


def test_only_the_key_itself_opens(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"{key_line('a', KEY)}\n{key_line('b', KEY + '2')}\n", encoding="utf-8")
    keys = read_api_keys(file)
    assert keys.name_of([("user-agent", "x"), ("authorization", f"bearer {KEY}")]) == "a"
    assert keys.name_of([bearer(KEY + "2")]) == "b"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for metadata in ([], [bearer(KEY[:-1])], [bearer("")], [bearer(digest)], [("authorization", f"Basic {KEY}")],
                     [("authorization", KEY)], [("x-authorization", f"Bearer {KEY}")], [bearer("\xff")]):
        assert keys.name_of(metadata) is None


@pytest.mark.parametrize(("text", "message"), [
    ("", "has no keys"), ("# only words\n", "has no keys"), (f"{KEY}\n", "line 1: write NAME sha256:HEX"),
    ("a sha256:123\n", "line 1"), (f"a sha256:{'0' * 64}\nb md5:1\n", "line 2"),
])
def test_a_file_without_keys_is_refused_and_not_shown(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=f"api_keys_file: {file}.*{message}") as raised:
        read_api_keys(file)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(("name", "key", "field"), [
    ("a", "short", "key"), ("a", "with a space, and long enough", "key"), ("", KEY, "name"), ("a b", KEY, "name"),
    ("#a", KEY, "name"), ("x" * 129, KEY, "name"),
])
def test_names_and_keys_that_cannot_be_used(name: str, key: str, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        key_line(name, key)
    assert [each.field for each in raised.value.violations] == [field]
