"""A server that is told to stop while a request cannot end: its verifier hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest

from qspec.errors import Unavailable
from qspec.rpc.errors import from_rpc_error
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import REPOSITORY, wait_until, wait_until_serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(("grace", "signals"), [("1", 1), ("100", 2)])
def test_request_that_cannot_end_is_told_and_nothing_is_left(grace: str, signals: int, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    write_tiny_model(model, "llama")
    address = f"unix:{tmp_path}/c.sock"
    server = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--listen", address, "--model", str(model), "--kv-tokens", "512",
         "--draft-quantization", "off", "--grace", grace],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )
    children: list[psutil.Process] = []
    try:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            wait_until_serving(stub, server)
            children = psutil.Process(server.pid).children(recursive=True)
            assert len(children) == 1
            children[0].suspend()
            call = stub.Generate(pb.GenerateRequest(text="hello", max_tokens=5))
            wait_until(lambda: stub.GetServerInfo(pb.GetServerInfoRequest()).running == 1, 10, "the request runs")
            told = time.monotonic()
            for number in range(signals):
                server.send_signal(signal.SIGTERM)
                if number + 1 < signals:
                    wait_until(
                        lambda: stub.GetServerInfo(pb.GetServerInfoRequest()).state == pb.SERVER_STATE_DRAINING,
                        10, "the server drains")
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
            error = from_rpc_error(raised.value)
            assert isinstance(error, Unavailable) and error.retry_after_s == 5.0, error
            assert time.monotonic() - told < 8
        _, errors = server.communicate(timeout=30)
        assert server.returncode == 0 and "Traceback" not in errors, errors
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    finally:
        for child in children:
            if child.is_running():
                child.kill()
        if server.poll() is None:
            server.kill()
            server.communicate()
