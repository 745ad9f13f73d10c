"""Constraints as a user gives them to the client: files, a pipe, an expression, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import REPOSITORY, answers, command, run_client
from tests.e2e.server import serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(240)
SCHEMA = (
    '{"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, '
    '"maximum": 99}}, "required": ["kind", "age"], "additionalProperties": false, '
    '"x-guidance": {"whitespace_flexible": false}}'
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server over a tiny model."""
    directory = tmp_path_factory.mktemp("constraints")
    write_tiny_model(directory / "tiny", "llama")
    with serving(directory, "--model", str(directory / "tiny"), "--draft-quantization", "w8a8", "--verify-quantization",
                 "none:fp32", "--threads", "1", "--kv-tokens", "512") as where:
        yield where


def is_record(text: str) -> bool:
    record = json.loads(text)
    return list(record) == ["kind", "age"] and record["kind"] in ("cat", "dog") and 0 <= record["age"] <= 99


@pytest.mark.parametrize("temperature", ["0", "1.5"])
def test_texts_are_what_the_constraint_says(address: str, temperature: str, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(SCHEMA)
    grammar.write_text('start: NUMBER "+" NUMBER\nNUMBER: /[1-9][0-9]{0,2}/\n')
    how = ("--address", address, "--prompt", "the fox", "--raw", "--temperature", temperature, "--seed", "4",
           "--draft-length", "3", "--max-tokens", "90")
    (record,), (number,), (sum_,) = (
        answers(*how, *constraint)
        for constraint in (
            ("--json-schema", str(schema)), ("--regex", "[0-9]{3}-[a-f]{4,8}"), ("--grammar", str(grammar)))
    )
    assert is_record(record["text"])
    assert re.fullmatch("[0-9]{3}-[a-f]{4,8}", number["text"])
    assert re.fullmatch(r"[1-9][0-9]{0,2}\+[1-9][0-9]{0,2}", sum_["text"])
    assert {each["finish_reason"] for each in (record, number, sum_)} == {"end_of_sequence"}
    assert record["speculation"]["drafted"] > 0


def test_a_schema_may_come_from_a_shell_s_pipe(address: str) -> None:
    client = shlex.join(command("--address", address, "--prompt", "the fox", "--raw", "--max-tokens", "90"))
    done = subprocess.run(
        ["bash", "-c", f"{client} --json-schema <(echo {shlex.quote(SCHEMA)})"], cwd=REPOSITORY, capture_output=True,
        text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert is_record(done.stdout)


def test_what_does_not_compile_is_refused_by_its_field(address: str) -> None:
    done = run_client("--address", address, "--prompt", "x", "--regex", "(a")
    assert done.returncode == 2 and done.stdout == ""
    assert "regex" in done.stderr and "Traceback" not in done.stderr
