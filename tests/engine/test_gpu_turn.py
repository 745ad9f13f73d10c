"""What a worker's turns on a GPU measure, with nothing left out, over fakes of NVML and of CUDA."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest
from filelock import FileLock, Timeout

from qspec.config import StackConfig, cache_directory
from qspec.engine.backend import check_machine, choose_backend
from qspec.engine.gpu_turn import gpu_context, gpu_start, gpu_turn
from qspec.errors import InvalidInput, ModelError
from qspec.gpus import VISIBLE
from qspec.interfaces import Progress, unwatched
from qspec.memory.cuda_runtime import CudaRuntime
from qspec.memory.device_usage import device_turn
from qspec.models.config import DecoderConfig
from qspec.quant.methods import Backend
from tests.memory.fake_cuda import Error, FakeCudaRuntime, FakeGpu
from tests.memory.fake_nvml import FakeNvml

SERVER, START, CONTEXT = 70 << 20, 2 << 20, 700 << 20
"""What an MPS server takes, started by its first client's first call, and CUDA's start and context in each process."""


class Machine:
    """Two GPUs, and processes that come one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpus = [FakeGpu(UUID(int=1 << 120)), FakeGpu(UUID(int=2 << 120))]
        self._patch = monkeypatch
        self.see(*self.gpus)
        monkeypatch.delenv(VISIBLE, raising=False)
        monkeypatch.setattr("qspec.engine.gpu_turn.missing_packages", list)
        monkeypatch.setattr("qspec.memory.device_usage._load_libraries", lambda runtime, device: None)

    def see(self, *gpus: FakeGpu, driver: bool = True) -> None:
        """What NVML shows."""
        self._patch.setitem(sys.modules, "pynvml", FakeNvml(*gpus, driver=driver))

    def process(self, *gpus: FakeGpu, start_bytes: int = START, error: Error = Error.cudaSuccess) -> CudaRuntime:
        """A new process in which CUDA numbers ``gpus`` so."""
        fake = FakeCudaRuntime(*(gpus or self.gpus), start_bytes=start_bytes, context_bytes=CONTEXT, error=error)
        runtime = fake.runtime()
        self._patch.setattr("qspec.engine.gpu_turn.cuda_runtime", lambda: runtime)
        return runtime


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    return Machine(monkeypatch)


def lock_of(gpu: FakeGpu) -> Path:
    return cache_directory() / f"GPU-{gpu.uuid}.lock"


def is_held(gpu: FakeGpu) -> bool:
    try:
        with FileLock(lock_of(gpu), timeout=0):
            return False
    except Timeout:
        return True


def ask(runtime: CudaRuntime) -> list[str] | None:
    """What a worker asks first."""
    try:
        return runtime.device_uuids()
    except InvalidInput:
        return None


def listed(progress: Progress = unwatched) -> int:
    """Bytes that a worker lists for its context."""
    with gpu_turn(Backend.CUDA, progress):
        return gpu_context().bytes


def test_all_that_cuda_takes_is_listed_and_its_first_client_lists_the_mps_server(machine: Machine) -> None:
    ours = machine.gpus[0]
    before, found = ours.used, []
    for start in (SERVER + START, START):
        runtime = machine.process(start_bytes=start)
        with gpu_start(unwatched):
            assert is_held(ours) and not is_held(machine.gpus[1])
            ask(runtime)
        ours.unallocated += 5000  # what others allocate between the two turns is theirs
        before += 5000
        with gpu_start(unwatched):  # once more, as the choice of a backend follows the look at the machine
            assert not is_held(ours)
            ask(runtime)
        found.append(listed())
    assert found == [SERVER + START + CONTEXT, START + CONTEXT]
    assert sum(found) == ours.used - before


@pytest.mark.parametrize("visible", ["1", "GPU-02", "GPU-02000000-0000-0000-0000-000000000000"])
def test_two_stacks_on_different_gpus_do_not_wait_for_each_other(
    visible: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = machine.gpus
    monkeypatch.setenv(VISIBLE, visible)
    runtime = machine.process(ours)
    theirs_lock = lock_of(theirs)
    theirs_lock.parent.mkdir()
    with device_turn(theirs_lock, unwatched):  # another stack loads there
        with gpu_start(lambda text, _share: pytest.fail(text)):
            assert is_held(ours)
            ask(runtime)
        assert listed(lambda text, _share: pytest.fail(text)) == START + CONTEXT


def test_a_container_that_has_one_of_the_gpus_uses_its_turns(machine: Machine) -> None:
    ours = machine.gpus[1]
    machine.see(ours)
    runtime = machine.process(ours)
    with gpu_start(unwatched):
        assert is_held(ours)
        ask(runtime)
    assert listed() == START + CONTEXT


def test_a_start_on_another_gpu_than_expected_is_not_listed(machine: Machine) -> None:
    runtime = machine.process(machine.gpus[1], machine.gpus[0])  # the faster one first
    with gpu_start(unwatched):
        ask(runtime)
        machine.gpus[0].unallocated += 5000  # by whom it is, nobody knows
    assert listed() == CONTEXT


def test_starting_waits_for_a_process_that_loads(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, told = machine.gpus[0], list[str]()
    runtime = machine.process()
    lock = lock_of(ours)
    lock.parent.mkdir()
    loading = FileLock(lock)
    loading.acquire()

    def loaded(text: str, _share: float | None) -> None:
        told.append(text)
        ours.unallocated += 5000
        loading.release()

    with gpu_start(loaded):
        ask(runtime)
    assert (told, listed()) == (["waiting for another process that loads on this GPU"], START + CONTEXT)


@pytest.mark.parametrize("obstacle", ["a turn that never comes", "a cache that cannot be written"])
def test_a_start_without_a_turn_is_no_error_and_not_listed(
    obstacle: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, lock = machine.process(), lock_of(machine.gpus[0])
    if obstacle.startswith("a cache"):
        (tmp_path / "cache").touch()  # root may write to a directory whatever its mode
        turn = FileLock(tmp_path / "other")
    else:
        lock.parent.mkdir()
        turn = FileLock(lock)
        monkeypatch.setattr("qspec.engine.gpu_turn.device_turn", partial(device_turn, timeout_s=0.1))
    with turn, gpu_start(unwatched):
        assert ask(runtime)
    assert runtime.start_bytes == 0


@pytest.mark.parametrize("lacking", ["a driver", "GPUs", "GPUs that CUDA can use"])
def test_where_there_is_no_gpu_to_measure_whoever_needs_one_says_so(lacking: str, machine: Machine) -> None:
    if not lacking.endswith("use"):
        machine.see(driver=lacking != "a driver")
    runtime = machine.process(error=Error.cudaErrorInsufficientDriver)
    with gpu_start(unwatched):
        assert ask(runtime) is None
    with pytest.raises(InvalidInput, match="no CUDA GPU can be used here: cudaGetDeviceCount failed with error 35"):
        listed()


def test_without_the_packages_nothing_is_asked(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qspec.engine.gpu_turn.missing_packages", lambda: ["pynvml"])
    monkeypatch.setattr("qspec.engine.gpu_turn.cuda_runtime", lambda: pytest.fail("CUDA is asked"))
    with gpu_start(lambda text, _share: pytest.fail(text)):
        pass


def test_a_question_that_fails_lets_go_of_the_turn(machine: Machine) -> None:
    machine.process()
    with pytest.raises(ZeroDivisionError), gpu_start(unwatched):
        raise ZeroDivisionError
    assert not is_held(machine.gpus[0])


@pytest.mark.parametrize("question", ["machine_absence", "gpu_absence"])
def test_workers_ask_cuda_nothing_before_their_turn(
    question: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, config = machine.process(), StackConfig(device="cuda")

    def absence(*_model: DecoderConfig) -> None:
        assert is_held(machine.gpus[0])
        ask(runtime)

    monkeypatch.setattr(f"qspec.engine.gpu_support.{question}", absence)
    if question == "machine_absence":
        check_machine(config, unwatched)
    else:
        nobody_asks_it = cast(DecoderConfig, None)
        assert choose_backend(config, nobody_asks_it, unwatched) is Backend.CUDA
    assert listed() == START + CONTEXT


def test_a_cache_that_cannot_be_written_is_one_line_where_a_worker_loads(machine: Machine, tmp_path: Path) -> None:
    machine.process()
    (tmp_path / "cache").touch()
    with (
        pytest.raises(ModelError, match=f"the model cache {tmp_path}/cache cannot be written .*set QSPEC_CACHE_DIR"),
        gpu_turn(Backend.CUDA, unwatched),
    ):
        pass
