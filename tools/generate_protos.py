"""Generates ``qspec/v1`` from ``protos``: messages, their ``.pyi`` and the gRPC stubs.

The proto files lie in ``protos/qspec/v1`` so that the generated modules import each other as ``qspec.v1.…`` and need no
repair. grpcio-tools is pinned to 1.80: a newer one writes code that refuses older runtimes of protobuf and grpcio.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("qspec") / "v1"
"""Where the files lie, below ``protos`` as well as below the repository's root."""


def generate(root: Path, into: Path) -> list[Path]:
    """Write the code for ``root/protos`` below ``into``; returns the files written, relative to ``into``.

    Raises ``RuntimeError`` when the compiler refuses a proto file (it has said why on stderr).
    """
    protos = root / "protos"
    sources = sorted(str(path.relative_to(protos)) for path in (protos / PACKAGE).glob("*.proto"))
    if not sources:
        raise RuntimeError(f"no proto files in {protos / PACKAGE}")
    before = {path: path.stat().st_mtime_ns for path in (into / PACKAGE).glob("*_pb2*")}
    options = [f"--{kind}={into}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    well_known = resources.files("grpc_tools") / "_proto"
    status = protoc.main(["protoc", f"--proto_path={protos}", f"--proto_path={well_known}", *options, *sources])
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    written = [path for path in (into / PACKAGE).glob("*_pb2*") if before.get(path) != path.stat().st_mtime_ns]
    return sorted(path.relative_to(into) for path in written)


def main() -> int:
    """Generate in place and remove what no proto file stands for any more."""
    stale = {path.relative_to(ROOT) for path in (ROOT / PACKAGE).glob("*_pb2*")}
    for path in (written := generate(ROOT, ROOT)):
        print(path)
    for path in sorted(stale - set(written)):
        (ROOT / path).unlink()
        print(f"{path} (removed)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
