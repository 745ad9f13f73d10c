"""Holds ``qspec/v1`` and docs/api.md to ``protos``: makes them anew and compares them byte for byte."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tools.api_reference import PAGE, render
from tools.generate_protos import PACKAGE, ROOT, generate


def find_drift(root: Path) -> list[str]:
    """One line for each generated file below ``root`` that is missing, superfluous or different."""
    with tempfile.TemporaryDirectory(prefix="qspec-generated-") as scratch:
        expected = {path: (Path(scratch) / path).read_bytes() for path in generate(root, Path(scratch))}
    present = {path.relative_to(root): path.read_bytes() for path in (root / PACKAGE).glob("*_pb2*") if path.is_file()}
    lines = []
    for path in sorted(expected.keys() | present.keys()):
        if path not in present:
            lines.append(f"{path}: missing")
        elif path not in expected:
            lines.append(f"{path}: no proto file stands for it")
        elif present[path] != expected[path]:
            lines.append(f"{path}: differs from what the proto files give")
    page = root / PAGE
    if not page.is_file() or page.read_text(encoding="utf-8") != render(root):
        lines.append(f"{PAGE}: differs from what the proto files give")
    return lines


def main() -> int:
    """Print what has drifted; the exit status is 1 when anything has."""
    if drift := find_drift(ROOT):
        print(*drift, "Run 'make protos' and check the result in.", sep="\n", file=sys.stderr)
        return 1
    print("Generated code agrees with the proto files.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
