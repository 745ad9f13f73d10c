"""One tiny model for all engine tests, and one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.stacks import KERNELS
from tests.native_kernels import require_native
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The directory of a tiny model by family, written once, and a cache of its own for conversions."""
    directory = tmp_path_factory.mktemp("tiny")

    def written(family: str) -> Path:
        if not (directory / family).exists():
            write_tiny_model(directory / family, family)
        return directory / family

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield written


@pytest.fixture(scope="session")
def model(model_of: Callable[[str], Path]) -> Path:
    """The one with grouped queries that most tests run on."""
    return model_of("llama")


@pytest.fixture(scope="module", params=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Stacks of the test run on each kind of kernels; a test that does not ask for it runs on torch's operations."""
    chosen: str = request.param
    if chosen == "native":
        require_native()
    before = KERNELS.set(chosen)
    yield chosen
    KERNELS.reset(before)


@pytest.fixture(autouse=True)
def torch_where_nothing_is_said(request: pytest.FixtureRequest) -> Iterator[None]:
    """What another test of the module chose is not for a test that does not ask for ``kernels``."""
    if "kernels" in request.fixturenames:
        yield
        return
    before = KERNELS.set("torch")
    yield
    KERNELS.reset(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
