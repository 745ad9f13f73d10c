"""Metrics, logs and traces of a server as a user starts it, with both workers and a tiny model."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.coordinator.metrics.scraped import Scrape, read_scrape
from tests.e2e.client import REPOSITORY, wait_until_serving
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.timeout(180)
CANARY = "xylophonist"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fetch(port: int) -> Scrape:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return read_scrape(answer.read().decode())


def test_a_server_tells_figures_of_both_workers_and_logs_no_prompt(tmp_path: Path) -> None:
    model, address, port = tmp_path / "tiny", f"unix:{tmp_path}/c.sock", free_port()
    write_tiny_model(model, "llama")
    server = subprocess.Popen(
        [sys.executable, "-m", "coordinator", f"--listen={address}", f"--model={model}", "--kv-tokens=512",
         "--draft-quantization=w8a8", "--verify-quantization=none:fp32", f"--metrics-listen=127.0.0.1:{port}",
         "--log-format=json", "--log-level=info", "--trace-endpoint=http://127.0.0.1:9", "--grace=1"],
        cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
    )
    try:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            wait_until_serving(stub, server)
            chat = pb.ChatPrompt(messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=CANARY)])
            for request in (
                pb.GenerateRequest(text=CANARY, max_tokens=8, draft_length=2, request_id="one", ignore_eos=True),
                pb.GenerateRequest(chat=chat, max_tokens=4, stop=[CANARY]),
                pb.GenerateRequest(text=CANARY, regex=f"({CANARY}"),
                pb.GenerateRequest(text=CANARY, max_tokens=200, timeout_s=0.01),
            ):
                with suppress(grpc.RpcError):
                    list(stub.Generate(request))
            now = fetch(port)
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()
    assert now("qspec_up") == now("qspec_worker_attached", worker="drafter") == now("qspec_epochs_total") == 1
    assert now("qspec_requests_refused_total", reason="invalid_argument") == 1
    for worker in ("verifier", "drafter"):
        assert now("qspec_worker_stage_seconds_total", worker=worker, stage="forward") > 0
        assert now("qspec_rpc_time_seconds_count", worker=worker) > 0
    assert now("qspec_rpc_time_seconds_sum", worker="verifier") > 0
    assert now("qspec_rpc_time_seconds_sum", worker="drafter") >= 0  # 0 where all drafts were made beside the verifier
    assert now("qspec_spec_decode_num_draft_tokens_total") > 0
    owners = {dict(labels).get("owner") for name, labels in now.values if name == "qspec_memory_bytes"}
    assert owners == {"arena", "drafter"}
    assert CANARY not in log
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("request_id") == "one" and line.get("drafted") for line in lines)
    assert len([line for line in lines if line["logger"] == "qspec.tracing"]) <= 1
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert not [line for line in lines if line["level"] == "error"]
