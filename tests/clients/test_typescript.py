"""The TypeScript client is what the protos give, and reads and writes the golden vectors."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.clients.generated import contents, generate
from tests.clients.tools import require_path, require_tool
from tests.clients.typescript import DIRECTORY, npm


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    require_tool("node")
    require_path(DIRECTORY / "node_modules" / ".bin" / "protoc-gen-es", "protoc-gen-es")
    generate(DIRECTORY, tmp_path)
    generated = Path("src") / "generated"
    assert contents(DIRECTORY / generated) == contents(tmp_path / generated), (
        "run 'make client-protos' and check the result in")


def test_golden_vectors() -> None:
    report = npm("test")
    counts = {name: int(count) for name, count in re.findall(r"^# (tests|pass|fail) (\d+)$", report, re.MULTILINE)}
    assert counts["tests"] == counts["pass"] > 0, report


def test_package_holds_the_library_and_nothing_else() -> None:
    npm("run", "build")
    (package,) = json.loads(npm("pack", "--dry-run", "--json", "--ignore-scripts"))
    paths = {file["path"] for file in package["files"]}
    assert {"package.json", "README.md", "dist/src/index.js", "dist/src/index.d.ts"} <= paths
    assert all(path.startswith("dist/src/") or path in ("package.json", "README.md") for path in paths)
