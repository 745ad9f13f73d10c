"""A store of weights is there as a whole or not at all, and what is not the right one is noticed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec.memory import weight_store
from qspec.memory.layout import RegionSpec
from qspec.memory.mapped_file import MappedRegions
from qspec.memory.weight_store import StoreDamaged, StoreWriter, open_store, place_regions

SPECS = [
    RegionSpec("a", torch.float32, (3, 5)), RegionSpec("b", torch.int8, (7,)),
    RegionSpec("c", torch.float8_e4m3fn, (64, 64)), RegionSpec("d", torch.int16, (2, 2)),
]
REGIONS = place_regions(SPECS, file=1)
FINGERPRINT = "f1"


def open_files() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def values(spec: RegionSpec) -> torch.Tensor:
    """What the tests store."""
    count = int(torch.Size(spec.shape).numel())
    return torch.arange(1, count + 1).remainder(100).view(spec.shape).to(spec.dtype)


def write(path: Path) -> None:
    """Write the tests' store."""
    with StoreWriter(path, FINGERPRINT, REGIONS) as store:
        for spec in SPECS:
            store.write(spec.name, values(spec))
        store.note("noted")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole store."""
    write(tmp_path / "x.weights")
    return tmp_path / "x.weights"


def test_what_was_written_is_mapped(path: Path) -> None:
    store = open_store(path, FINGERPRINT, REGIONS)
    assert store.notes == ("noted",)
    mapped = MappedRegions([store.file], REGIONS)
    for spec in SPECS:
        tensor = mapped.tensor(spec.name)
        assert (tensor.dtype, tuple(tensor.shape), tensor.data_ptr() % 64) == (spec.dtype, spec.shape, 0)
        assert torch.equal(tensor.float(), values(spec).float())
    mapped.close()
    mapped.close()
    assert list(path.parent.iterdir()) == [path], "no partial file"


def test_a_transposed_tensor_is_written_as_it_reads(tmp_path: Path) -> None:
    regions = place_regions([RegionSpec("t", torch.float32, (2, 3))], file=1)
    wanted = torch.arange(6.0).view(3, 2).t()
    with StoreWriter(tmp_path / "t", FINGERPRINT, regions) as store:
        store.write("t", wanted)
    mapped = MappedRegions([open_store(tmp_path / "t", FINGERPRINT, regions).file], regions)
    assert torch.equal(mapped.tensor("t"), wanted)
    mapped.close()


def test_what_is_not_whole_gets_no_name(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(ValueError, match="not written"), StoreWriter(path, FINGERPRINT, REGIONS) as store:
        store.write("a", values(SPECS[0]))
    with pytest.raises(ValueError, match="announced"), StoreWriter(path, FINGERPRINT, REGIONS) as store:
        store.write("a", values(SPECS[0]).double())
    with pytest.raises(KeyboardInterrupt), StoreWriter(path, FINGERPRINT, REGIONS):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        open_store(path, FINGERPRINT, REGIONS)


def cut(content: bytes) -> bytes:
    return content[:-1]


def longer(content: bytes) -> bytes:
    return content + b" "


def emptied(content: bytes) -> bytes:
    return b""


def foreign(content: bytes) -> bytes:
    return b"PK\x03\x04" + content[4:]


def of_another_version(content: bytes) -> bytes:
    return content[:8] + b"\x63" + content[9:]


def with_other_data(content: bytes) -> bytes:
    return content[:4100] + bytes([content[4100] ^ 1]) + content[4101:]


def with_another_table(content: bytes) -> bytes:
    return content[:-2] + b"  "


@pytest.mark.parametrize(("damage", "reason"), [
    (cut, "bytes instead of"), (longer, "bytes instead of"), (emptied, "empty"), (foreign, "no file of weights"),
    (of_another_version, "version"), (with_other_data, "data do not have"), (with_another_table, "table"),
])
def test_damage_is_noticed(path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    path.write_bytes(damage(path.read_bytes()))
    before = open_files()
    with pytest.raises(StoreDamaged, match=reason):
        open_store(path, FINGERPRINT, REGIONS)
    assert open_files() == before


def test_the_store_of_something_else_is_noticed(path: Path) -> None:
    with pytest.raises(StoreDamaged, match="another model"):
        open_store(path, "f2", REGIONS)
    with pytest.raises(StoreDamaged, match="another layout"):
        open_store(path, FINGERPRINT, REGIONS[:-1])


def test_a_large_store_is_checked_in_places_spread_over_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_store, "_CHUNK", 256)
    write(path)
    content = path.read_bytes()
    places = range(4096, 4096 + 4096, 256)

    def noticed() -> list[bool]:
        found = []
        for first in places:
            path.write_bytes(content[:first] + bytes([content[first] ^ 1]) + content[first + 1 :])
            try:
                open_store(path, FINGERPRINT, REGIONS).file.close()
                found.append(False)
            except StoreDamaged:
                found.append(True)
        return found

    assert all(noticed())
    monkeypatch.setattr(weight_store, "_CHECKED_BYTES", 1024)
    assert noticed() == [index % 5 == 0 for index in range(len(places))]


@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = open_files()
    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    write(tmp_path / "x")
    open_store(tmp_path / "x", FINGERPRINT, REGIONS).file.close()


def test_a_store_beyond_a_real_limit_leaves_nothing(tmp_path: Path) -> None:
    """The kernel's own refusal: no file of this process may exceed 4 KiB."""
    code = "import sys, pathlib; from tests.memory import test_weight_store as t; t.write(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 1
    assert f"[Errno {errno.EFBIG}]" in done.stderr
    assert list(tmp_path.iterdir()) == []
