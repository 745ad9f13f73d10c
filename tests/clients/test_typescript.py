"""The TypeScript client is what the protos give, and reads and writes the golden vectors."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.clients.generated import contents, generate
from tests.clients.tools import require_path, require_tool, run
from tests.clients.typescript import DIRECTORY, npm


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    require_tool("node")
    require_path(DIRECTORY / "node_modules" / ".bin" / "protoc-gen-es", "protoc-gen-es")
    generate(DIRECTORY, tmp_path)
    generated = Path("src") / "generated"
    assert contents(DIRECTORY / generated) == contents(tmp_path / generated), (
        "run 'make client-protos' and check the result in")


def test_example_of_the_readme_compiles(tmp_path: Path) -> None:
    require_tool("node")
    compiler = DIRECTORY / "node_modules" / ".bin" / "tsc"
    require_path(compiler, "the TypeScript compiler")
    (body,) = re.findall(r"^```ts\n(.*?)^```$", (DIRECTORY / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "hello.mts").write_text(body, "utf-8")
    project = {
        "extends": str(DIRECTORY / "tsconfig.json"), "files": ["hello.mts"], "include": [],
        "compilerOptions": {
            "noEmit": True, "incremental": False, "skipLibCheck": True, "rootDir": "/",
            "paths": {"@qspec/client": [str(DIRECTORY / "src" / "index.ts")]},
            "typeRoots": [str(DIRECTORY / "node_modules" / "@types")], "types": ["node"]},
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps(project), "utf-8")
    run([str(compiler), "--project", str(tmp_path)], tmp_path)


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
