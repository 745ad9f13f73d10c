"""Weights are written once, mapped from then on, and never lie in a worker's own memory."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qspec.engine import weight_files
from qspec.engine.drafter import LocalDrafter
from qspec.engine.verifier import LocalVerifier
from qspec.errors import ModelError
from qspec.interfaces import Sampling
from qspec.models.converted import prepare
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS
from tests.engine.stacks import config, generate, generate_alone, quiet, running, sequences
from tests.tiny_models import FAMILIES, write_tiny_model

WRITING = "writing fp16-planes weights to the cache, once"


@pytest.fixture
def wide(model_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model that every group size divides, converted, and a cache without stores."""
    directory = model_of("llama_wide")
    prepared = prepare(str(directory), progress=quiet)
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models").symlink_to(prepared.directory.parent)
    yield directory


def stores(cache: Path) -> list[Path]:
    """What a user finds in the cache beside converted models; locks aside."""
    return sorted(path for path in cache.glob("weights/*/*") if not path.name.endswith(".lock"))


def start(model: Path, verify: str = "none:fp16") -> list[str]:
    """Start a verifier and stop it; what it told, each line once."""
    told: list[str] = []
    LocalVerifier.load(
        config(model, verify_quantization=verify), progress=lambda text, _share: told.append(text), epoch=1
    ).close()
    return list(dict.fromkeys(told))


def test_a_second_start_writes_nothing(wide: Path, tmp_path: Path) -> None:
    first = start(wide)
    (store,) = stores(tmp_path / "cache")
    status = store.stat()
    assert WRITING in first
    second = start(wide)
    assert second == [text for text in first if not text.startswith("writing")]
    assert any("were rounded to fit" in text for text in second)
    assert stores(tmp_path / "cache") == [store]
    assert (store.stat().st_ino, store.stat().st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert store.name.startswith("fp16-planes-") and store.suffix == ".weights"


def test_fp32_is_mapped_from_the_converted_model(wide: Path, tmp_path: Path) -> None:
    model = prepare(str(wide), progress=quiet)
    with running(wide, draft_quantization="none") as stack, LayerWeights(model) as weights:
        arena = stack.verifier.arena
        assert stores(tmp_path / "cache") == []
        assert os.path.samestat(os.fstat(arena.fds[1]), (model.directory / "weights.safetensors").stat())
        assert len(arena.fds) == 2
        for name in weights.tensors:
            assert torch.equal(arena.tensor(f"weights/{name}"), weights.tensors[name])
        assert arena.descriptor.size < 1 << 20, "KV blocks and batch state"


def test_fp32_that_does_not_lie_well_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vector loads want multiples of 64 bytes, and a safetensors file has no gaps."""
    monkeypatch.setenv("QSPEC_CACHE_DIR", str(tmp_path / "cache"))
    kind, settings = FAMILIES["llama"]
    monkeypatch.setitem(FAMILIES, "llama_odd", (kind, {**settings, "hidden_size": 40, "intermediate_size": 44}))
    directory = tmp_path / "odd"
    write_tiny_model(directory, "llama_odd")
    model = prepare(str(directory), progress=quiet)
    with running(directory, draft_quantization="off") as stack, LayerWeights(model) as weights:
        arena = stack.verifier.arena
        assert any(weights.tensors.offset(name) % 64 for name in weights.tensors)
        for name in weights.tensors:
            assert torch.equal(arena.tensor(f"weights/{name}"), weights.tensors[name])
            assert arena.tensor(f"weights/{name}").data_ptr() % 64 == 0


@pytest.mark.parametrize(("draft", "weights"), [("int4", "int4-g64"), ("int8:g32", "int8-g32"), ("none:fp32", "fp32")])
def test_the_drafters_own_formats_are_mapped_too(wide: Path, tmp_path: Path, draft: str, weights: str) -> None:
    with running(wide, draft_quantization=draft, verify_quantization="none:fp16") as stack:
        drafter = stack.drafter
        assert drafter is not None
        own = [store for store in stores(tmp_path / "cache") if store.name.startswith(weights)]
        assert len(own) == (0 if weights == "fp32" else 1)
        memory = {item.name: item for item in drafter.weights.memory}
        assert (memory[f"weights {weights}"].mapped_file, memory[f"weights {weights}"].shared) == (True, False)
        for name, parts in drafter.weights.private.items():
            with LayerWeights(drafter._model) as stored:
                encoded = CODECS[weights].encode(stored.tensors[name].t(), name)
            for part, tensor in parts.items():
                assert torch.equal(tensor, encoded[part])
        expected = generate_alone(stack.loop, sequences(draft_length=0, max_tokens=6))
        assert generate(stack.loop, sequences(Sampling(), draft_length=3, max_tokens=6)) == expected


def cut(path: Path) -> None:
    """A copy that was interrupted."""
    os.truncate(path, path.stat().st_size - 4097)


def other(path: Path) -> None:
    """A file of somebody else's."""
    path.write_bytes(b"\x89PNG" + bytes(10_000))


def flipped(path: Path) -> None:
    """One bit of the data."""
    content = bytearray(path.read_bytes())
    content[20_000] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, other, flipped])
def test_a_damaged_store_is_written_anew_and_says_so(
    wide: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = start(wide)
    (store,) = stores(tmp_path / "cache")
    content = store.read_bytes()
    damage(store)
    told = start(wide)
    assert len([text for text in told if text.startswith(f"{store} is written anew: it")]) == 1
    assert [text for text in told if "written anew" not in text] == first
    assert store.read_bytes() == content
    assert not any("anew" in text for text in start(wide))


def test_a_new_encoding_gets_a_new_store(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(wide)
    monkeypatch.setattr(weight_files, "ENCODING_VERSION", 10**6)
    assert WRITING in start(wide)
    assert len(stores(tmp_path / "cache")) == 2


@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(ModelError) as caught:
        disk.setattr(os, function, full)
        start(wide)
    assert "No space left on device" in str(caught.value)
    assert "free some space there or set QSPEC_CACHE_DIR" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert stores(tmp_path / "cache") == []
    assert WRITING in start(wide)


def test_an_unreadable_store_is_one_line(wide: Path, tmp_path: Path) -> None:
    start(wide)
    (store,) = stores(tmp_path / "cache")
    store.unlink()
    store.mkdir()
    with pytest.raises(ModelError, match=r"cannot be mapped \(.*\); make it readable, or delete it"):
        start(wide)


def test_an_existing_store_needs_no_writing(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a read-only file system, or of another user."""
    start(wide)

    def refuse(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("nothing is to be locked or written")

    monkeypatch.setattr(weight_files, "locked", refuse)
    monkeypatch.setattr(weight_files, "StoreWriter", refuse)
    start(wide)


def test_two_threads_write_once_and_the_second_says_that_it_waits(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, waiting = threading.Event(), threading.Event()
    told: dict[str, list[str]] = {"first": [], "second": []}

    def first(text: str, _share: float | None) -> None:
        told["first"].append(text)
        if text == WRITING and not writing.is_set():
            writing.set()
            assert waiting.wait(30)

    def second(text: str, _share: float | None) -> None:
        told["second"].append(text)
        if text.startswith("waiting"):
            waiting.set()

    def load(name: str, progress: Callable[[str, float | None], None]) -> None:
        settings = config(wide, verify_quantization="none:fp16")
        LocalVerifier.load(settings, progress=progress, epoch=1).close()

    threads = [threading.Thread(target=load, args=("first", first))]
    threads[0].start()
    assert writing.wait(30)
    threads.append(threading.Thread(target=load, args=("second", second)))
    threads[1].start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert "waiting for another process that writes the weights" in told["second"]
    assert WRITING not in told["second"]
    assert len(stores(tmp_path / "cache")) == 1


def _load_in_a_process(model: Path, results: multiprocessing.Queue[list[str]]) -> None:
    torch.set_num_threads(1)
    results.put(start(model))


def test_two_processes_write_once(wide: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[str]] = context.Queue()
    processes = [context.Process(target=_load_in_a_process, args=(wide, results)) for _ in range(2)]
    for process in processes:
        process.start()
    try:
        told = [results.get(timeout=90) for _ in processes]
    except queue.Empty:
        told = []
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(WRITING in lines for lines in told) == [False, True]
    assert len(stores(tmp_path / "cache")) == 1
    assert not any("anew" in text for text in start(wide))


def test_what_a_killed_writer_left_is_in_nobodys_way(wide: Path, tmp_path: Path) -> None:
    start(wide)
    (store,) = stores(tmp_path / "cache")
    store.rename(store.with_name(f".{store.name}.partial"))
    assert WRITING in start(wide)
    assert stores(tmp_path / "cache") == [store]


def test_a_drafter_of_another_format_has_its_own_store_only_for_its_layers(wide: Path, tmp_path: Path) -> None:
    settings = config(
        wide, verify_quantization="int4", draft_quantization="w4a8", draft_overrides="layers.1.qkv=int8:g64")
    drafter = LocalDrafter.load(settings, progress=quiet)
    assert list(drafter.weights.private) == ["layers.1.qkv"]
    (store,) = stores(tmp_path / "cache")
    assert store.name.startswith("int8-g64-")
    sizes = [tensor.numel() * tensor.itemsize for tensor in drafter.weights.private["layers.1.qkv"].values()]
    assert sum(sizes) <= store.stat().st_size < sum(sizes) + 8192
