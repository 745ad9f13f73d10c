"""A verifier that is killed on a GPU: another epoch, its graphs captured again, and the text goes on."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import grpc
import pytest

pytest.importorskip("psutil")

from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc
from tests.e2e.client import StreamingClient, answers, footprint, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

OPTIONS = (
    "--model", os.environ.get("QSPEC_TEST_MODEL", "smollm2"), "--device", "cuda", "--prompt",
    "Tell me a long story about a lighthouse.", "--max-tokens", "3000", "--ignore-eos", "--draft-length", "3",
)  # fmt: skip


def test_the_text_goes_on_over_graphs_that_are_captured_again(tmp_path: Path) -> None:
    undisturbed = answers(*OPTIONS)[0]["text"]
    with StreamingClient(tmp_path, *OPTIONS) as client:
        text = client.read(40)
        stack = footprint(client.process)
        assert stack.directory is not None
        os.kill(stack.role("verifier").pid, signal.SIGKILL)
        with grpc.insecure_channel(f"unix:{stack.directory}/coordinator.sock") as channel:
            stub = pb_grpc.GenerationServiceStub(channel)

            def recovered() -> bool:
                info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
                return info.verifier_restarts == 1 and bool(info.verify_method) and bool(info.draft_method)

            wait_until(recovered, 120, "the next verifier and the drafter are attached")
            memory = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10).memory
        text += client.read()
        assert client.process.wait(30) == 0, client.errors()
    graphs = {line.owner: int(found[1]) for line in memory if (found := re.search(r"(\d+) CUDA graphs", line.name))}
    print(f"graphs of the second epoch: {graphs}")
    assert graphs["verifier"] > 20 and graphs["drafter"] > 5
    assert len(undisturbed) > 4000, "it was not over before the verifier died"
    assert text.rstrip("\n") == undisturbed.rstrip("\n")
