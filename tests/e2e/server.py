"""A server as a user starts it, for tests that ask it many things."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, wait_until_serving


@contextlib.contextmanager
def serving(directory: Path, *options: str) -> Iterator[str]:
    """Run ``python -m coordinator`` until the block ends; yields its address once it serves."""
    address = f"unix:{directory}/c.sock"
    server = subprocess.Popen([sys.executable, "-m", "coordinator", "--listen", address, *options], cwd=REPOSITORY)
    try:
        with grpc.insecure_channel(address) as channel:
            wait_until_serving(pb_grpc.GenerationServiceStub(channel), server)
        yield address
    finally:
        server.terminate()
        server.wait(30)
