"""What a context takes of a GPU, over a fake of NVML."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qspec.errors import InvalidInput
from qspec.memory.device_usage import DeviceUsage


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
