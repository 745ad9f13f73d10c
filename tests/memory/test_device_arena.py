"""An arena in two kinds of memory: one descriptor, and every region where it belongs."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from qspec.errors import ContractViolation
from qspec.interfaces import Region, RegionWriter
from qspec.memory.attachment import open_arena
from qspec.memory.cuda_runtime import CudaRuntime
from qspec.memory.device_arena import DeviceArena
from qspec.memory.layout import RegionSpec
from qspec.rpc.codec import arena_from_pb, arena_to_pb
from tests.memory.fake_cuda import FakeCudaRuntime, FakeGpu

ON_GPU = [
    RegionSpec("quantised/high", torch.float8_e4m3fn, (3, 5)),
    RegionSpec("tail", torch.float16, (2, 2), RegionWriter.DRAFTER),
]
ON_HOST = [
    RegionSpec("state", torch.int64, (4,)),
    RegionSpec("probs", torch.float32, (9,), RegionWriter.DRAFTER),
]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture(autouse=True)
def runtime(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    runtime = FakeCudaRuntime(gpu).runtime()
    monkeypatch.setattr("qspec.memory.cuda_arena.cuda_runtime", lambda: runtime)
    return runtime


def create() -> DeviceArena:
    def fingerprint(regions: tuple[Region, ...]) -> str:
        return ",".join(f"{region.name}@{region.file}" for region in regions)

    return DeviceArena.create(ON_GPU, ON_HOST, epoch=5, fingerprint_of=fingerprint)


def test_both_see_the_same_memory_through_the_wire() -> None:
    created = create()
    assert created.descriptor.fingerprint == "quantised/high@0,tail@0,state@1,probs@1"
    opened = open_arena(arena_from_pb(arena_to_pb(created.descriptor)))
    assert isinstance(opened, DeviceArena)
    assert created.names() == opened.names() == [spec.name for spec in (*ON_GPU, *ON_HOST)]
    for spec in (*ON_GPU, *ON_HOST):
        writer, reader = (created, opened) if spec.writer is RegionWriter.VERIFIER else (opened, created)
        mine, theirs = writer.tensor(spec.name), reader.tensor(spec.name)
        assert (mine.shape, mine.dtype) == (torch.Size(spec.shape), spec.dtype)
        assert not bool(theirs.float().any())
        mine.copy_(torch.arange(1, mine.numel() + 1).view(spec.shape).to(spec.dtype))
        assert torch.equal(theirs.float(), mine.float())
        assert bool(theirs.float().all())


def test_both_parts_go(gpu: FakeGpu) -> None:
    created = create()
    opened = open_arena(created.descriptor)
    (fd,) = created.fds
    for arena in (opened, created, created):
        arena.close()
    assert not gpu.allocations
    assert not created.is_mapped
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_descriptor_with_other_files_is_refused() -> None:
    descriptor = create().descriptor
    damaged = replace(descriptor, regions=tuple(replace(each, file=2) for each in descriptor.regions))
    with pytest.raises(ContractViolation, match="other files"):
        DeviceArena.open(damaged)
    with pytest.raises(ContractViolation, match="other files"):
        DeviceArena.open(replace(descriptor, file_sizes=(1, 2)))
