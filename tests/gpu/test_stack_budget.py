"""The whole stack, as processes: what it says that it takes of a GPU is what NVML sees go."""

from __future__ import annotations

import asyncio
import gc
import os

import grpc
import pytest
import torch

from coordinator.private_stack import PrivateStack
from qspec.config import StackConfig
from qspec.memory.cuda_runtime import cuda_runtime
from qspec.memory.device_usage import DeviceUsage
from qspec.v1 import generation_pb2 as pb
from qspec.v1 import generation_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MODEL = os.environ.get("QSPEC_TEST_MODEL", "smollm2")


@pytest.mark.parametrize(("draft", "verify"), [("fp8:plane", "none"), ("fp8", "int8")], ids=["one copy", "two copies"])
def test_the_budget_is_the_change_of_the_device(draft: str, verify: str) -> None:
    """With MPS where it is there; its server's own memory comes with its first client's context, and is listed so."""
    usage = DeviceUsage.of(cuda_runtime().device_uuid(0))
    gc.collect()
    torch.cuda.empty_cache()
    before = usage.used()
    config = StackConfig(model=MODEL, device="cuda", draft_quantization=draft, verify_quantization=verify)

    async def started() -> tuple[int, pb.GetServerInfoResponse]:
        async with PrivateStack(config, lambda _text, _share: None) as address, grpc.aio.insecure_channel(
                address) as channel:
            stub = pb_grpc.GenerationServiceStub(channel)
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
            return usage.used() - before, info

    change, info = asyncio.run(started())
    lines = [line for line in info.memory if "host memory" not in line.name]
    for line in lines:
        print(f"{line.bytes / 1e6:10.1f} MB  {line.owner}: {line.name}")
    listed = sum(line.bytes for line in lines)
    print(f"{listed / 1e6:10.1f} MB listed, {change / 1e6:.1f} MB by NVML ({listed / change - 1:+.2%})")
    contexts = [line for line in lines if line.name.startswith("CUDA context")]
    assert [line.owner for line in contexts] == ["verifier", "drafter"]
    assert all(line.bytes for line in contexts), "a context that measures as nothing was made before"
    assert abs(listed - change) <= 0.03 * change
