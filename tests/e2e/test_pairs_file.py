"""A server whose pairs are named in a file, which changes while it serves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, wait_until, wait_until_serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(180)


def test_pairs_come_and_go_as_the_file_says(tmp_path: Path) -> None:
    model, file = tmp_path / "tiny", tmp_path / "pairs"
    write_tiny_model(model, "llama")
    file.write_text("own\n")
    address = f"unix:{tmp_path}/c.sock"
    server = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--listen", address, "--model", str(model), "--kv-tokens", "512",
         "--draft-quantization", "off", "--verify-quantization", "none:fp32", "--threads", "1",
         "--pairs-file", str(file)],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            wait_until_serving(stub, server)

            def text() -> list[int]:
                request = pb.GenerateRequest(text="the fox", max_tokens=20, ignore_eos=True)
                return [token for piece in stub.Generate(request) for token in piece.token_ids]

            def states() -> list[int]:
                return [pair.state for pair in stub.GetServerInfo(pb.GetServerInfoRequest()).pairs]

            first = text()
            file.write_text("own\nown\n")
            wait_until(lambda: states() == [pb.PAIR_STATE_SERVING] * 2, 60, "another pair serves")
            assert stub.GetServerInfo(pb.GetServerInfoRequest()).max_slots == 32
            assert text() == first
            file.write_text("nonsense nonsense\n")
            file.write_text("own\n")
            wait_until(lambda: states() == [pb.PAIR_STATE_SERVING], 30, "one pair is left")
            assert len(psutil.Process(server.pid).children()) == 1
            assert text() == first
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0 and "Traceback" not in errors, errors
