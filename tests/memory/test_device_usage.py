"""What a context takes of a GPU, over a fake of NVML."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qspec.errors import InvalidInput, OutOfMemory, QspecError
from qspec.interfaces import MemoryItem
from qspec.memory.cuda_runtime import CudaRuntime
from qspec.memory.device_usage import DeviceUsage, device_turn, measure_context, out_of_memory_named
from tests.memory.fake_cuda import FakeCudaRuntime, FakeGpu


class FakeNvml:
    """``pynvml`` of a machine with one GPU."""

    class NVMLError(Exception):
        """As NVML's."""

    def __init__(self, used: int) -> None:
        self.used = used

    def nvmlInit(self) -> None:
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self.used, free=0, total=0)


def test_the_whole_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(5)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    usage = DeviceUsage.of("GPU-1")
    nvml.used = 9
    assert usage.used() == 9
    with pytest.raises(InvalidInput, match="NVML does not answer for GPU-2: Not Found"):
        DeviceUsage.of("GPU-2")


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(InvalidInput, match="nvidia-ml-py.*qspec-serve\\[gpu\\]"):
        DeviceUsage.of("GPU-1")


def test_no_context_is_measured_while_another_process_loads(tmp_path: Path) -> None:
    nvml, lock, waiting = FakeNvml(100), tmp_path / "lock", threading.Event()
    usage, found = DeviceUsage(nvml, "GPU-1"), list[MemoryItem]()

    def load(_runtime: CudaRuntime, _device: int) -> None:
        nvml.used += 7

    def second() -> None:
        with device_turn(lock, lambda _text, _share: waiting.set()):
            found.append(measure_context(FakeCudaRuntime(FakeGpu()).runtime(), 0, usage, load))

    other = threading.Thread(target=second)
    with device_turn(lock, lambda text, _share: pytest.fail(text)):
        found.append(measure_context(FakeCudaRuntime(FakeGpu()).runtime(), 0, usage, load))
        other.start()
        assert waiting.wait(10)
        nvml.used += 5000  # the arena, long after this process's context
    other.join(10)
    assert [item.bytes for item in found] == [7, 7]


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
