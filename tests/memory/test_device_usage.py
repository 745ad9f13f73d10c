"""What a context takes of a GPU, over a fake of NVML."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from uuid import UUID

import pytest
import torch

from qspec.errors import InvalidInput, OutOfMemory, QspecError
from qspec.gpus import VISIBLE
from qspec.interfaces import MemoryItem
from qspec.memory.cuda_runtime import CudaRuntime
from qspec.memory.device_usage import DeviceUsage, device_turn, measure_context, out_of_memory_named
from tests.memory.fake_cuda import FakeCudaRuntime, FakeGpu
from tests.memory.fake_nvml import FakeNvml

UUIDS = ("GPU-8a000000-0000-0000-0000-000000000001", "GPU-8b000000-0000-0000-0000-000000000002")


def gpu(uuid: str = UUIDS[0]) -> FakeGpu:
    return FakeGpu(UUID(uuid.removeprefix("GPU-")))


def no_libraries(_runtime: CudaRuntime, _device: int) -> None:
    """Nothing more than a context."""


def test_the_whole_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    (ours := gpu()).unallocated = 5
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(ours))
    usage = DeviceUsage.of(UUIDS[0])
    ours.unallocated = 9
    assert usage.used() == 9
    with pytest.raises(InvalidInput, match=f"NVML does not answer for {UUIDS[1]}: Not Found"):
        DeviceUsage.of(UUIDS[1])


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InvalidInput, match="nvidia-ml-py.*qspec-serve\\[gpu\\]"):
        DeviceUsage.of(UUIDS[0])
    assert DeviceUsage.expected() is None


@pytest.mark.parametrize(("visible", "expected"), [
    (None, UUIDS[0]), ("0", UUIDS[0]), ("1", UUIDS[1]), (" 1 ,0", UUIDS[1]), (UUIDS[1], UUIDS[1]),
    ("GPU-8b,GPU-8a", UUIDS[1]), ("", None), ("-1", None), ("2", None), ("GPU-8c", None), ("MIG-8a", None),
])
def test_the_first_gpu_is_known_before_cuda_is_asked(
    visible: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*map(gpu, UUIDS)))
    if visible is None:
        monkeypatch.delenv(VISIBLE, raising=False)
    else:
        monkeypatch.setenv(VISIBLE, visible)
    usage = DeviceUsage.expected()
    assert (None if usage is None else usage.uuid) == expected


@pytest.mark.parametrize("nvml", [FakeNvml(), FakeNvml(gpu(), driver=False)], ids=["no GPU", "no driver"])
def test_no_gpu_is_expected_where_nvml_knows_none(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert DeviceUsage.expected() is None


def test_no_context_is_measured_while_another_process_loads(tmp_path: Path) -> None:
    ours, lock, waiting = gpu(), tmp_path / "lock", threading.Event()
    ours.unallocated = 100
    usage, found = DeviceUsage(FakeNvml(ours), UUIDS[0]), list[MemoryItem]()

    def measured() -> MemoryItem:
        return measure_context(FakeCudaRuntime(ours, context_bytes=7).runtime(), 0, usage, no_libraries)

    def second() -> None:
        with device_turn(lock, lambda _text, _share: waiting.set()):
            found.append(measured())

    other = threading.Thread(target=second)
    with device_turn(lock, lambda text, _share: pytest.fail(text)):
        found.append(measured())
        other.start()
        assert waiting.wait(10)
        ours.unallocated += 5000  # the arena, long after this process's context
    other.join(10)
    assert [item.bytes for item in found] == [7, 7]


def test_what_cuda_s_start_took_is_counted_once() -> None:
    runtime = FakeCudaRuntime(ours := gpu(), context_bytes=7).runtime()
    runtime.start_bytes = 40
    usage = DeviceUsage(FakeNvml(ours), UUIDS[0])
    items = [measure_context(runtime, 0, usage, no_libraries) for _ in range(2)]
    assert [item.bytes for item in items] == [47, 0]


def test_a_turn_that_never_comes_is_an_error(tmp_path: Path) -> None:
    lock, told = tmp_path / "lock", list[str]()
    with device_turn(lock, lambda _text, _share: None):
        second = device_turn(lock, lambda text, _share: told.append(text), timeout_s=0.1)
        with pytest.raises(QspecError, match=r"loading on this GPU for 0.1 s"), second:
            raise AssertionError("two have the turn")
    assert told == ["waiting for another process that loads on this GPU"]


def test_memory_that_runs_out_in_torch_is_one_line() -> None:
    said = r"^the GPU's memory ran out in capturing; lower kv_tokens.*\(tried 4 GB\)$"
    with pytest.raises(OutOfMemory, match=said), out_of_memory_named("capturing"):
        raise torch.OutOfMemoryError("tried 4 GB\nand much more about that")
