"""The other commands of ``make check`` are configured so that they can fail."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tools.generate_protos import PACKAGE, ROOT

SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool of the environment in the repository's root."""
    program, *arguments = map(str, command)
    return subprocess.run(
        [str(SCRIPTS / program), *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("from __future__ import annotations\n\nimport os\n", "F401"),
        ("x = 1\n", "I002"),
        (f"from __future__ import annotations\n\nx = '{'x' * 120}'\n", "E501"),
        ("from __future__ import annotations\n\nprint(1)\n", "T201"),
    ],
)
def test_ruff_refuses(code: str, rule: str) -> None:
    result = run("ruff", "check", "--no-cache", "--stdin-filename", "qspec/planted.py", "-", text=code)
    assert result.returncode == 1
    assert rule in result.stdout


def test_ruff_leaves_generated_code_alone() -> None:
    listed = run("ruff", "check", "--show-files").stdout
    assert str(ROOT / "qspec" / "config.py") in listed
    assert str(ROOT / PACKAGE) + "/" not in listed


def test_mypy_is_strict(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    result = run("mypy", "--cache-dir", tmp_path / "cache", planted)
    assert result.returncode == 1
    assert "[no-untyped-def]" in result.stdout


def test_buf_refuses_a_badly_named_enum_value(tmp_path: Path) -> None:
    protos = Path(shutil.copytree(ROOT / "protos", tmp_path / "protos"))
    assert run("buf", "lint", protos).returncode == 0
    with (protos / PACKAGE / "types.proto").open("a", encoding="utf-8") as file:
        file.write("\nenum Planted {\n  NOTHING = 0;\n}\n")
    result = run("buf", "lint", protos)
    assert result.returncode != 0
    assert 'should be prefixed with "PLANTED_"' in result.stdout


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("uint32 completion_tokens = 2;", "uint32 made_tokens = 2;", 'from "completion_tokens" to "made_tokens"'),
    ("uint32 completion_tokens = 2;", "uint64 completion_tokens = 2;", 'changed type from "uint32" to "uint64"'),
    ("uint32 completion_tokens = 2;", "uint32 completion_tokens = 99;", 'field "2" with name "completion_tokens"'),
    ("  FINISH_REASON_LENGTH = 3;\n", "", 'enum value "3"'),
    ("rpc Tokenize(", "rpc Tokens(", 'RPC "Tokenize"'),
])
def test_buf_refuses_to_break_clients(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    protos = Path(shutil.copytree(ROOT / "protos", tmp_path / "protos"))
    against = ("buf", "breaking", protos, "--against", ROOT / "protos" / "accepted.binpb")
    assert run(*against).returncode == 0
    file = protos / PACKAGE / "generation.proto"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    result = run(*against)
    assert result.returncode != 0 and complaint in result.stdout


def test_buf_lets_fields_be_added(tmp_path: Path) -> None:
    protos = Path(shutil.copytree(ROOT / "protos", tmp_path / "protos"))
    file = protos / PACKAGE / "generation.proto"
    planted = "message Usage {\n  // More.\n  uint32 planted = 1000;\n"
    file.write_text(file.read_text(encoding="utf-8").replace("message Usage {\n", planted), encoding="utf-8")
    assert run("buf", "breaking", protos, "--against", ROOT / "protos" / "accepted.binpb").returncode == 0
