"""NVML over the fake GPUs: what ``pynvml`` answers, whoever uses them."""

from __future__ import annotations

from types import SimpleNamespace

from tests.memory.fake_cuda import FakeGpu


class FakeNvml:
    """``pynvml`` of a machine with these GPUs, in NVML's order."""

    class NVMLError(Exception):
        """As NVML's."""

    def __init__(self, *gpus: FakeGpu, driver: bool = True) -> None:
        """``driver``: whether there is one."""
        self._gpus, self._driver = gpus, driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self._gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self._gpus:
            if self.nvmlDeviceGetUUID(gpu) == uuid:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return f"GPU-{handle.uuid}"

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(used=handle.used, free=handle.total - handle.used, total=handle.total)
