"""The golden vectors are what the proto files give, and Python reads and writes them as every other client has to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from qspec.v1 import generation_pb2 as pb
from tools.golden_vectors import DIRECTORY, find_drift

VECTORS = sorted(DIRECTORY.glob("*/*.bin"))

each_vector = pytest.mark.parametrize("path", VECTORS, ids=lambda path: f"{path.parent.name}-{path.stem}")


def read(path: Path) -> Message:
    """The message of the vector at ``path``."""
    message: Message = getattr(pb, path.parent.name)()
    message.ParseFromString(path.read_bytes())
    return message


def test_the_vectors_are_what_the_tool_writes() -> None:
    assert find_drift(DIRECTORY) == []


def test_drift_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "golden"
    shutil.copytree(DIRECTORY, copy)
    (copy / "TokenizeResponse" / "none.bin").write_bytes(b"\n\x00")
    (copy / "TokenizeResponse" / "tokens.json").unlink()
    (copy / "TokenizeResponse" / "more.bin").touch()
    assert find_drift(copy) == [
        "TokenizeResponse/more.bin: no vector", "TokenizeResponse/none.bin: differs",
        "TokenizeResponse/tokens.json: missing",
    ]


def test_every_message_of_a_public_call_has_a_vector() -> None:
    methods = pb.DESCRIPTOR.services_by_name["GenerationService"].methods
    assert {path.parent.name for path in VECTORS} == {
        message.name for method in methods for message in (method.input_type, method.output_type)
    }


@each_vector
def test_bytes_read_and_written_again_are_the_same(path: Path) -> None:
    assert read(path).SerializeToString(deterministic=True) == path.read_bytes()


@each_vector
def test_json_and_bytes_are_one_message(path: Path) -> None:
    value = json.loads(path.with_suffix(".json").read_text("utf-8"))
    message = read(path)
    assert json_format.MessageToDict(message) == value
    message.DiscardUnknownFields()
    assert json_format.ParseDict(value, type(message)()) == message
