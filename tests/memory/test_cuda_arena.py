"""The arena on a GPU, over a fake of the CUDA runtime: layout, lifetimes, and every refusal."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from uuid import UUID

import pytest
import torch

from qspec.errors import ContractViolation, EpochMismatch, InvalidInput, OutOfMemory
from qspec.interfaces import ArenaBackend, RegionWriter
from qspec.memory.attachment import open_arena
from qspec.memory.budget import BudgetLine
from qspec.memory.cuda_arena import STAMP_BYTES, CudaArena
from qspec.memory.cuda_runtime import CudaFailure, cuda_runtime
from qspec.memory.layout import DEVICE_ALIGNMENT, ArenaLayout, RegionSpec
from qspec.rpc.codec import arena_from_pb, arena_to_pb
from tests.memory.fake_cuda import Error, FakeCudaRuntime, FakeGpu

SPECS = [
    RegionSpec("quantised/high", torch.float8_e4m3fn, (3, 5)),
    RegionSpec("weights/norm", torch.float16, (7,)),
    RegionSpec("state", torch.int64, (4,)),
    RegionSpec("tail", torch.float32, (2, 2), RegionWriter.DRAFTER),
    RegionSpec("probs", torch.float16, (9,), RegionWriter.DRAFTER),
]


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def verifier(gpu: FakeGpu) -> FakeCudaRuntime:
    return FakeCudaRuntime(gpu, pid=11)


@pytest.fixture
def drafter(gpu: FakeGpu) -> FakeCudaRuntime:
    return FakeCudaRuntime(gpu, pid=12)


def create(fake: FakeCudaRuntime, epoch: int = 3) -> CudaArena:
    return CudaArena.create(SPECS, epoch=epoch, fingerprint="f", runtime=fake.runtime())


def test_both_processes_see_the_same_memory(verifier: FakeCudaRuntime, drafter: FakeCudaRuntime) -> None:
    created = create(verifier)
    opened = CudaArena.open(created.descriptor, runtime=drafter.runtime())
    assert created.names() == opened.names() == [spec.name for spec in SPECS]
    for spec in SPECS:
        writer, reader = (created, opened) if spec.writer is RegionWriter.VERIFIER else (opened, created)
        mine, theirs = writer.tensor(spec.name), reader.tensor(spec.name)
        assert (mine.shape, mine.dtype) == (torch.Size(spec.shape), spec.dtype)
        assert not bool(theirs.float().any()), "a new arena is zero"
        values = torch.arange(1, mine.numel() + 1).view(spec.shape).to(spec.dtype)
        mine.copy_(values)
        assert torch.equal(theirs.float(), values.float())
    assert created.tensor("state").tolist() == [1, 2, 3, 4], "no region lies over another"


def test_the_layout_is_that_of_host_memory_at_coarser_multiples(verifier: FakeCudaRuntime) -> None:
    descriptor = create(verifier).descriptor
    layout = ArenaLayout.place(SPECS, DEVICE_ALIGNMENT)
    assert descriptor.regions == layout.regions
    assert descriptor.size == layout.size + STAMP_BYTES
    assert all(region.offset % DEVICE_ALIGNMENT == 0 for region in layout.regions)
    assert (descriptor.backend, len(descriptor.handle)) == (ArenaBackend.CUDA_IPC, 64)
    assert descriptor.device_uuid == "GPU-00000000-0000-0000-0000-000000000007"
    assert descriptor.handle.hex() not in repr(descriptor)


def test_one_process_needs_no_handle(verifier: FakeCudaRuntime, gpu: FakeGpu) -> None:
    runtime = verifier.runtime()
    created = CudaArena.create(SPECS, epoch=1, fingerprint="f", runtime=runtime)
    opened = CudaArena.open(created.descriptor, runtime=runtime)
    opened.tensor("state").fill_(4)
    assert created.tensor("state").tolist() == [4] * 4
    assert "cudaIpcOpenMemHandle" not in verifier.calls
    created.close()
    assert opened.tensor("state").tolist() == [4] * 4
    opened.close()
    assert gpu.used == 0


def test_memory_goes_with_the_last_tensor_once_kernels_are_done(
    verifier: FakeCudaRuntime, drafter: FakeCudaRuntime, gpu: FakeGpu
) -> None:
    created = create(verifier)
    opened = CudaArena.open(created.descriptor, runtime=drafter.runtime())
    tensor = opened.tensor("state")
    created.tensor("state").fill_(5)
    created.close()
    opened.close()
    opened.close()  # again, without effect
    assert [created.is_mapped, opened.is_mapped] == [False, True], "a tensor over it lives"
    assert verifier.calls[-2:] == ["cudaDeviceSynchronize", "cudaFree"]
    assert tensor.tolist() == [5] * 4, "a mapping outlives its exporter"
    del tensor
    assert not opened.is_mapped
    assert drafter.calls[-2:] == ["cudaDeviceSynchronize", "cudaIpcCloseMemHandle"]
    assert gpu.used == 0
    with pytest.raises(ContractViolation, match="closed"):
        opened.tensor("state")


def test_memory_that_cannot_be_released_is_told(
    verifier: FakeCudaRuntime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = create(verifier)
    monkeypatch.setattr(verifier, "cudaFree", lambda pointer: (Error.cudaErrorInvalidValue,))
    with caplog.at_level(logging.WARNING):
        created.close()
    assert "cudaFree failed with error 1 (cudaErrorInvalidValue)" in caplog.text


def test_no_gpu_is_a_clear_error() -> None:
    without_driver = FakeCudaRuntime(error=Error.cudaErrorInsufficientDriver)
    with pytest.raises(InvalidInput, match=r"device: no CUDA GPU .* error 35 \(cudaErrorInsufficientDriver\)"):
        create(without_driver)
    with pytest.raises(InvalidInput, match="CUDA_VISIBLE_DEVICES"):
        create(FakeCudaRuntime())
    with pytest.raises(InvalidInput, match="GPU 1 does not exist; 1 are visible"):
        CudaArena.create(SPECS, epoch=1, fingerprint="f", device=1, runtime=FakeCudaRuntime(FakeGpu()).runtime())


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_runtime.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(InvalidInput, match="cuda-bindings.*qspec-serve\\[gpu\\]"):
        CudaArena.create(SPECS, epoch=1, fingerprint="f")


def test_another_gpu_is_a_clear_error(verifier: FakeCudaRuntime) -> None:
    created = create(verifier)
    elsewhere = FakeCudaRuntime(FakeGpu(uuid=UUID(int=8)), pid=12)
    with pytest.raises(InvalidInput, match=r"lies on GPU-0.*7, and this process sees GPU-0.*8; .*CUDA_VISIBLE_DEVICES"):
        CudaArena.open(created.descriptor, runtime=elsewhere.runtime())


def test_the_gpu_is_found_by_its_uuid_whatever_its_number(verifier: FakeCudaRuntime, gpu: FakeGpu) -> None:
    created = create(verifier)
    sees_two = FakeCudaRuntime(FakeGpu(uuid=UUID(int=8)), gpu, pid=12)
    opened = CudaArena.open(created.descriptor, runtime=sees_two.runtime())
    created.tensor("state").fill_(6)
    assert opened.tensor("state").tolist() == [6] * 4


def test_equal_pids_are_told_with_the_remedy(verifier: FakeCudaRuntime, gpu: FakeGpu) -> None:
    created = create(verifier)
    same_pid = FakeCudaRuntime(gpu, pid=verifier.pid)
    with pytest.raises(InvalidInput, match=r"error 201 .*same PID.*shareProcessNamespace: true"):
        CudaArena.open(created.descriptor, runtime=same_pid.runtime())


def test_a_handle_of_a_dead_epoch_is_refused(verifier: FakeCudaRuntime, drafter: FakeCudaRuntime) -> None:
    created = create(verifier)
    descriptor = created.descriptor
    created.close()
    with pytest.raises(EpochMismatch, match="arena of epoch 3 cannot be mapped, its verifier is gone.*205"):
        CudaArena.open(descriptor, runtime=drafter.runtime())


def test_memory_that_went_to_another_epoch_is_refused(
    verifier: FakeCudaRuntime, drafter: FakeCudaRuntime, gpu: FakeGpu
) -> None:
    successor = create(verifier, epoch=4)
    descriptor = replace(successor.descriptor, epoch=3)  # an address that was given away again
    with pytest.raises(EpochMismatch, match="handle of epoch 3 leads to memory that is of epoch 4"):
        CudaArena.open(descriptor, runtime=drafter.runtime())
    assert [each.holders for each in gpu.allocations.values()] == [1], "it was let go of again"


def test_what_does_not_fit_is_refused_before_it_is_allocated(verifier: FakeCudaRuntime, gpu: FakeGpu) -> None:
    budget = [
        BudgetLine("arena", "weights fp16-planes", 600_000_000, shared=True),
        BudgetLine("drafter", "graphs", gpu.total - 599_999_999, shared=False),
    ]
    with pytest.raises(OutOfMemory, match="on the GPU; lower kv_tokens or max_slots\n.*600.0 MB  shared .* fp16-pla"):
        CudaArena.create(SPECS, epoch=1, fingerprint="f", budget=budget, runtime=verifier.runtime())
    gpu.total = 1000
    with pytest.raises(OutOfMemory, match="shared  arena"):
        create(verifier)
    assert "cudaMalloc" not in verifier.calls


def test_an_allocation_that_fails_all_the_same_is_told(
    verifier: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "cudaMalloc", lambda size: (Error.cudaErrorMemoryAllocation, None))
    with pytest.raises(CudaFailure, match=r"cudaMalloc failed with error 2 \(cudaErrorMemoryAllocation\)"):
        create(verifier)


def test_a_descriptor_that_is_none_of_a_gpus_is_refused(verifier: FakeCudaRuntime, drafter: FakeCudaRuntime) -> None:
    descriptor = create(verifier).descriptor
    with pytest.raises(ContractViolation, match="host_shm"):
        CudaArena.open(replace(descriptor, backend=ArenaBackend.HOST_SHM), runtime=drafter.runtime())
    beyond = replace(descriptor.regions[0], offset=descriptor.size - STAMP_BYTES)
    for damaged in (replace(descriptor, handle=b"short"), replace(descriptor, regions=(beyond,))):
        with pytest.raises(ContractViolation, match="damaged"):
            CudaArena.open(damaged, runtime=drafter.runtime())


def test_a_descriptor_survives_the_wire(verifier: FakeCudaRuntime, drafter: FakeCudaRuntime) -> None:
    created = create(verifier)
    received = arena_from_pb(arena_to_pb(created.descriptor))
    assert received == created.descriptor
    created.tensor("state").fill_(3)
    assert CudaArena.open(received, runtime=drafter.runtime()).tensor("state").tolist() == [3] * 4


def test_an_arena_is_opened_by_its_kind(verifier: FakeCudaRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    created = create(verifier)
    other = FakeCudaRuntime(*verifier.gpus, pid=12).runtime()
    monkeypatch.setattr("qspec.memory.cuda_arena.cuda_runtime", lambda: other)
    opened = open_arena(created.descriptor)
    created.tensor("state").fill_(2)
    assert opened.tensor("state").tolist() == [2] * 4
    assert opened.fds == ()
