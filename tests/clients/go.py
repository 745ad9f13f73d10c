"""Builds the Go client with Debian's packages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.clients.tools import require_path, require_tool, run
from tools.generate_protos import ROOT

DIRECTORY = ROOT / "clients" / "go"
MODULE = "qspec.dev/qspec"
LIBRARIES = Path("/usr/share/gocode/src/google.golang.org")


@dataclass(frozen=True, slots=True)
class GoModule:
    """The client's module, with what is built lying elsewhere."""

    scratch: Path

    def run(self, *command: str) -> str:
        """Run a command of Go on the module."""
        return run([str(DIRECTORY / "with-debian-packages"), *command], DIRECTORY,
                   {"QSPEC_GOPATH": str(self.scratch / "gopath")})

    def build_example(self) -> list[str]:
        """The command line of the streaming example."""
        program = self.scratch / "generate"
        self.run("go", "build", "-o", str(program), f"{MODULE}/examples/generate")
        return [str(program)]


def go_module(scratch: Path) -> GoModule:
    """The module, where Go and its libraries are."""
    require_tool("go")
    for library in ("grpc", "genproto", "protobuf"):
        require_path(LIBRARIES / library, f"google.golang.org/{library}")
    return GoModule(scratch)
