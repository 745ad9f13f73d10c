"""Drift between the proto files and the generated code is noticed, whichever side changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools.api_reference import PAGE, render
from tools.check_generated import find_drift
from tools.generate_protos import PACKAGE, ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the proto files and the generated code."""
    for folder in (Path("protos"), PACKAGE):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / PAGE).parent.mkdir()
    shutil.copy(ROOT / PAGE, tmp_path / PAGE)
    return tmp_path


def test_this_repository_has_no_drift(tree: Path) -> None:
    assert find_drift(tree) == []


def test_a_changed_proto_file_is_noticed(tree: Path) -> None:
    proto = tree / "protos" / PACKAGE / "types.proto"
    proto.write_text(proto.read_text(encoding="utf-8") + "\nmessage Added {}\n", encoding="utf-8")
    drift = find_drift(tree)
    assert f"{PACKAGE / 'types_pb2.py'}: differs from what the proto files give" in drift
    assert f"{PACKAGE / 'types_pb2.pyi'}: differs from what the proto files give" in drift


def test_an_edited_missing_or_superfluous_file_is_noticed(tree: Path) -> None:
    with (tree / PACKAGE / "drafter_pb2_grpc.py").open("a", encoding="utf-8") as file:
        file.write("# by hand\n")
    (tree / PACKAGE / "verifier_pb2.pyi").unlink()
    (tree / PACKAGE / "old_pb2.py").touch()
    assert find_drift(tree) == [
        f"{PACKAGE / 'drafter_pb2_grpc.py'}: differs from what the proto files give",
        f"{PACKAGE / 'old_pb2.py'}: no proto file stands for it",
        f"{PACKAGE / 'verifier_pb2.pyi'}: missing",
    ]


def test_the_reference_follows_the_comments(tree: Path) -> None:
    proto = tree / "protos" / PACKAGE / "generation.proto"
    text = proto.read_text(encoding="utf-8")
    proto.write_text(text.replace("// Most tokens to make, ", "// As many tokens as | at most, "), encoding="utf-8")
    assert find_drift(tree) == [f"{PAGE}: differs from what the proto files give"]
    assert "| `max_tokens` | 4 | optional `uint32` | As many tokens as \\| at most, at least 1." in render(tree)
    (tree / PAGE).unlink()
    assert f"{PAGE}: differs from what the proto files give" in find_drift(tree)


def test_the_reference_has_what_the_public_service_reaches() -> None:
    page = render(ROOT)
    for heading in ("GenerateRequest", "TokenLogprobs", "FinishReason", "Usage", "MemoryLine", "ServerState"):
        assert f"\n## {heading}\n" in page
    assert "ArenaDescriptor" not in page and "VerifyRequest" not in page


def test_a_broken_proto_file_is_an_error(tree: Path) -> None:
    (tree / "protos" / PACKAGE / "types.proto").write_text('syntax = "proto3";\nmessage {', encoding="utf-8")
    with pytest.raises(RuntimeError, match="protoc ended with status"):
        find_drift(tree)
