"""Every contract test runs on every pair of source and transport."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.sources import Source, Workers, fake_source, in_process, local_source, over_grpc
from tests.native_kernels import require_native

_TRANSPORTS = {"in-process": in_process, "grpc": over_grpc}
_SOURCES: dict[str, Callable[[Path], Source]] = {
    "fake": lambda model: fake_source(),
    "w8a8": lambda model: local_source(model, draft_quantization="w8a8", kernels="torch"),
    "none": lambda model: local_source(model, draft_quantization="none", kernels="torch"),
    "native w8a8": lambda model: local_source(model, draft_quantization="w8a8", kernels="native"),
    "native none": lambda model: local_source(model, draft_quantization="none", kernels="native"),
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model on disk, and a cache of its own for its conversion."""
    from tests.tiny_models import write_tiny_model

    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_model(directory / "model", "llama")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield directory / "model"


@pytest.fixture(scope="module")
def agreeing(tiny_model: Path) -> Iterator[Workers]:
    """Real engines behind gRPC; draft and verifier have the same weights, so that every draft stands."""
    with (
        tempfile.TemporaryDirectory(prefix="qspec-") as directory,
        over_grpc(local_source(tiny_model, draft_quantization="none", kernels="torch"), Path(directory)) as pair,
    ):
        yield pair


@pytest.fixture(params=_SOURCES)
def source(request: pytest.FixtureRequest, tiny_model: Path) -> Source:
    """Which engines."""
    if request.param.startswith("native"):
        require_native()
    return _SOURCES[request.param](tiny_model)


@pytest.fixture(params=_TRANSPORTS)
def workers(request: pytest.FixtureRequest, source: Source) -> Iterator[Workers]:
    """An attached pair of workers with the limits of ``tests.contract.sources``."""
    with (
        tempfile.TemporaryDirectory(prefix="qspec-") as directory,
        _TRANSPORTS[request.param](source, Path(directory)) as pair,
    ):
        yield pair
