"""Builds the C++ client, warnings being errors."""

from __future__ import annotations

from pathlib import Path

from tests.clients.tools import refuse, require_tool, run
from tools.generate_protos import ROOT

SOURCE = ROOT / "clients" / "cpp"
BUILD = ROOT / "build" / "clients-cpp"
"""Kept between runs: only what has changed is compiled anew."""


def build(source: Path = SOURCE, into: Path = BUILD, *options: str) -> Path:
    """Configure and build; returns the directory of what was built."""
    for tool in ("cmake", "ninja", "protoc", "grpc_cpp_plugin", "c++"):
        require_tool(tool)
    if not any(Path("/usr").glob("lib/**/cmake/grpc/gRPCConfig.cmake")):
        refuse("the library gRPC for C++ (Debian: libgrpc++-dev) is not installed")
    run(["cmake", "-G", "Ninja", "-S", str(source), "-B", str(into), "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
         "-DCMAKE_BUILD_TYPE=Release", *options], ROOT)
    run(["cmake", "--build", str(into)], ROOT)
    return into


def build_example() -> list[str]:
    """The command line of the streaming example."""
    return [str(build() / "qspec_generate")]
