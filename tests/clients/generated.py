"""The code that is checked in for a client, against what buf generates of the protos now."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.clients.tools import run
from tools.generate_protos import ROOT


def generate(client: Path, into: Path) -> None:
    """Run the client's ``buf.gen.yaml``."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"
    run([buf, "generate", "--template", str(client / "buf.gen.yaml"), "-o", str(into)], ROOT)


def contents(directory: Path) -> dict[str, str]:
    """The texts of all files below ``directory``."""
    return {
        str(path.relative_to(directory)): path.read_text("utf-8") for path in directory.rglob("*") if path.is_file()
    }


def versions(files: dict[str, str], generator: str) -> set[str]:
    """The versions of ``generator`` that the files name."""
    return {found for text in files.values() for found in re.findall(rf"\b{generator} +(v[\d.]+)", text)}
