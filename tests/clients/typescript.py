"""Builds the TypeScript client with the compiler that npm has installed beside it."""

from __future__ import annotations

from tests.clients.tools import require_path, require_tool, run
from tools.generate_protos import ROOT

DIRECTORY = ROOT / "clients" / "typescript"


def npm(*arguments: str) -> str:
    """Run a script of the package, where Node and the package's dependencies are."""
    require_tool("node")
    require_path(DIRECTORY / "node_modules", "what the TypeScript client depends on")
    return run([require_tool("npm"), "--silent", *arguments], DIRECTORY)


def build_example() -> list[str]:
    """The command line of the streaming example."""
    npm("run", "build")
    return [require_tool("node"), str(DIRECTORY / "dist" / "examples" / "generate.js")]
