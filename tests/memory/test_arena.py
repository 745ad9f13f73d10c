"""The arena on host memory: shared both ways, read-only where it must be, without a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.errors import ContractViolation, OutOfMemory
from qspec.interfaces import ArenaBackend, Region, RegionWriter
from qspec.memory import arena
from qspec.memory.arena import HostArena
from qspec.memory.layout import PAGE, RegionSpec
from qspec.memory.mapped_file import MappedFile, MappedRegions

SPECS = [
    RegionSpec("weights/a", torch.float32, (3, 5)),
    RegionSpec("weights/b", torch.int64, (7,)),
    RegionSpec("state", torch.int64, (4,)),
    RegionSpec("tail", torch.float32, (2, 2), RegionWriter.DRAFTER),
    RegionSpec("probs", torch.float16, (9,), RegionWriter.DRAFTER),
]


def open_files() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def created() -> Iterator[HostArena]:
    """The verifier's mapping."""
    arena = HostArena.create(SPECS, epoch=3, fingerprint="f")
    yield arena
    arena.close()


@pytest.fixture
def opened(created: HostArena) -> Iterator[HostArena]:
    """The drafter's mapping of the same memory."""
    arena = HostArena.open(created.descriptor)
    yield arena
    arena.close()


def test_both_mappings_are_the_same_memory(created: HostArena, opened: HostArena) -> None:
    assert created.names() == opened.names()
    for spec in SPECS:
        writer, reader = (created, opened) if spec.writer is RegionWriter.VERIFIER else (opened, created)
        mine, theirs = writer.tensor(spec.name), reader.tensor(spec.name)
        assert (mine.shape, mine.dtype) == (torch.Size(spec.shape), spec.dtype)
        assert not bool(theirs.any()), "a new arena is zero"
        values = torch.arange(1, mine.numel() + 1).view(spec.shape).to(spec.dtype)
        mine.copy_(values)
        assert torch.equal(theirs, values)
    assert created.tensor("weights/a").flatten().tolist() == list(range(1, 16)), "no region lies over another"


def test_tensors_outlive_the_arena(created: HostArena) -> None:
    tensor = created.tensor("state")
    created.close()
    tensor.fill_(5)
    assert tensor.tolist() == [5] * 4
    created.close()  # again, without effect


def test_closing_one_mapping_leaves_the_other(created: HostArena) -> None:
    HostArena.open(created.descriptor).close()
    created.tensor("state").fill_(1)
    again = HostArena.open(created.descriptor)
    assert again.tensor("state").tolist() == [1] * 4
    again.close()


_WRITE = """
import faulthandler, sys, torch
faulthandler.disable()
from qspec.interfaces import RegionWriter
from qspec.memory import arena
from qspec.memory.arena import HostArena
from qspec.memory.layout import PAGE, RegionSpec
created = HostArena.create(
    [RegionSpec("kv", torch.float32, (4,)), RegionSpec("tail", torch.float32, (4,), RegionWriter.DRAFTER)],
    epoch=1, fingerprint="f",
)
opened = HostArena.open(created.descriptor)
opened.tensor("tail").fill_(1.0)
print("tail written", flush=True)
opened.tensor("kv").fill_(1.0)
print("kv written", flush=True)
"""


def test_the_drafter_cannot_write_what_is_committed() -> None:
    done = subprocess.run([sys.executable, "-c", _WRITE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "tail written\n"), done.stderr


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[MappedRegions]:
    """Two tensors in two files."""
    regions = []
    for index, name in enumerate("ab"):
        (tmp_path / name).write_bytes(bytes(64) + torch.full((6,), 1.0 + index).numpy().tobytes())
        regions.append(Region(
            name=f"weights/{name}", dtype="float32", shape=(2, 3), offset=64, writer=RegionWriter.VERIFIER,
            file=index + 1,
        ))
    mapped = MappedRegions([MappedFile.open(tmp_path / name) for name in "ab"], regions)
    yield mapped
    mapped.close()


def test_weights_are_the_files_that_the_creator_opened(weights: MappedRegions, tmp_path: Path) -> None:
    before = open_files()
    created = HostArena.create(SPECS[2:], epoch=3, fingerprint="f", weights=weights)
    (tmp_path / "a").unlink()  # replaced meanwhile, or in another mount namespace
    (tmp_path / "a").write_bytes(bytes(88))
    opened = HostArena.open(created.descriptor)
    for index, name in enumerate("ab"):
        assert opened.tensor(f"weights/{name}").tolist() == [[1.0 + index] * 3] * 2
        assert os.path.samestat(os.fstat(opened.fds[index + 1]), os.fstat(created.fds[index + 1]))
    opened.tensor("tail").fill_(2.0)
    assert created.tensor("tail").tolist() == [[2.0] * 2] * 2
    tensor = opened.tensor("weights/b")
    opened.close()
    created.close()
    assert tensor.tolist() == [[2.0] * 3] * 2, "a tensor keeps its mapping"
    del tensor
    assert open_files() <= before


def test_files_of_another_size_are_refused(weights: MappedRegions) -> None:
    created = HostArena.create(SPECS, epoch=3, fingerprint="f", weights=weights)
    before = open_files()
    for sizes in ((88, 89), (88,), (88, 88, 88)):
        with pytest.raises(ContractViolation, match="size"):
            HostArena.open(replace(created.descriptor, file_sizes=sizes))
    assert open_files() == before
    created.close()


_WRITE_WEIGHTS = """
import faulthandler, sys, torch
faulthandler.disable()
from pathlib import Path
from qspec.interfaces import Region, RegionWriter
from qspec.memory.arena import HostArena
from qspec.memory.mapped_file import MappedFile, MappedRegions
Path(sys.argv[1]).write_bytes(bytes(64))
region = Region(name="w", dtype="float32", shape=(16,), offset=0, writer=RegionWriter.VERIFIER, file=1)
created = HostArena.create(
    [], epoch=1, fingerprint="f", weights=MappedRegions([MappedFile.open(Path(sys.argv[1]))], [region]))
arena = created if sys.argv[2] == "verifier" else HostArena.open(created.descriptor)
print(arena.tensor("w").sum().item(), flush=True)
arena.tensor("w").fill_(1.0)
print("written", flush=True)
"""


@pytest.mark.parametrize("worker", ["verifier", "drafter"])
def test_nobody_can_write_weights(tmp_path: Path, worker: str) -> None:
    command = [sys.executable, "-c", _WRITE_WEIGHTS, str(tmp_path / "file"), worker]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "0.0\n"), done.stderr
    assert (tmp_path / "file").read_bytes() == bytes(64)


def test_another_size_is_refused(created: HostArena) -> None:
    before = open_files()
    with pytest.raises(ContractViolation, match="size"):
        HostArena.open(replace(created.descriptor, size=created.descriptor.size * 2))
    assert open_files() == before


@pytest.mark.parametrize("reference", ["", "shm:/x", "7"])
def test_an_unknown_reference_is_refused(created: HostArena, reference: str) -> None:
    with pytest.raises(ContractViolation, match="reference"):
        HostArena.open(replace(created.descriptor, reference=reference))


def test_another_backend_is_refused(created: HostArena) -> None:
    with pytest.raises(ContractViolation, match="cuda_ipc"):
        HostArena.open(replace(created.descriptor, backend=ArenaBackend.CUDA_IPC))


def test_a_failed_allocation_is_an_error_and_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, weights: MappedRegions
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    before = open_files()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfMemory, match="No space left"):
        HostArena.create(SPECS, epoch=1, fingerprint="f")
    assert open_files() == before
    with pytest.raises(OutOfMemory, match="No space left"):
        HostArena.create(SPECS, epoch=1, fingerprint="f", weights=weights)
    assert open_files() < before


def test_nothing_has_a_name_in_the_file_system(created: HostArena, opened: HostArena) -> None:
    assert not [path for path in Path("/dev/shm").iterdir() if "qspec" in path.name]
    for mapped in (created, opened):
        assert os.fstat(mapped.fd).st_nlink == 0
        assert not os.get_inheritable(mapped.fd)


def test_without_memfd_a_file_without_a_name_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    created = HostArena.create(SPECS, epoch=1, fingerprint="f")
    opened = HostArena.open(created.descriptor)
    created.tensor("state").fill_(2)
    assert opened.tensor("state").tolist() == [2] * 4
    assert os.fstat(created.fd).st_nlink == 0
    created.close()
    opened.close()


def test_the_descriptor_does_not_show_the_way_to_the_memory(created: HostArena) -> None:
    assert created.descriptor.reference not in repr(created.descriptor)


def test_what_does_not_fit_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "available_memory", lambda: 2 * PAGE - 1)
    specs = [RegionSpec("a", torch.uint8, (PAGE + 1,))]
    with pytest.raises(OutOfMemory, match="does not fit"):
        HostArena.create(specs, epoch=1, fingerprint="f")
