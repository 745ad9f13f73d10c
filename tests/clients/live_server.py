"""A whole server with a tiny model, which the clients' programs talk to."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, wait_until_serving
from tests.tiny_models import edit_config, write_tiny_model

POSITIONS = 8192
"""Of the model's context: enough that a text is still running when a test wants it to end."""


@contextlib.contextmanager
def live_server(directory: Path) -> Iterator[str]:
    """Serve a tiny model until the block ends. Yields the address."""
    address = f"unix:{directory}/public.sock"
    with grpc.insecure_channel(address) as channel, served_program(directory, channel, "--listen", address):
        yield address


@contextlib.contextmanager
def served_program(directory: Path, channel: grpc.Channel, *options: str) -> Iterator[None]:
    """Run ``python -m coordinator`` with a tiny model and these options, once it serves, until the block ends.

    ``channel`` reaches it.
    """
    model = directory / "tiny"
    write_tiny_model(model, "llama")
    edit_config(model, {"max_position_embeddings": POSITIONS})
    server = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--model", str(model), "--kv-tokens", str(POSITIONS), "--grace", "1",
         *options],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )
    try:
        wait_until_serving(pb_grpc.GenerationServiceStub(channel), server)
        yield
    finally:
        server.terminate()
        try:
            server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()


def running(address: str) -> int:
    """Requests that hold a slot."""
    with grpc.insecure_channel(address) as channel:
        info: pb.GetServerInfoResponse = pb_grpc.GenerationServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
        return info.running
