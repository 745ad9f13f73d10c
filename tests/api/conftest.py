"""Tiny models of several families with one vocabulary, loaded once for all tests of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from qspec import QSPECModel, QuantizedModel
from qspec.api.loaded_models import release_models
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """The directory of a tiny model; ``llama@1`` is the llama with seed 1."""
    directory = tmp_path_factory.mktemp("api")

    def written(name: str) -> Path:
        family, _, seed = name.partition("@")
        if not (directory / name).exists():
            write_tiny_model(directory / name, family, seed=int(seed or 0))
        return directory / name

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield written
        release_models()


Loader = Callable[..., QuantizedModel]


@pytest.fixture(scope="session")
def load(directory_of: Callable[[str], Path]) -> Iterator[Loader]:
    """Load a tiny model under a method, once."""
    loaded: dict[tuple[str, str], QuantizedModel] = {}

    def get(name: str, method: str = "none") -> QuantizedModel:
        if (name, method) not in loaded:
            loaded[name, method] = QuantizedModel(str(directory_of(name)), method, kv_tokens=1024)
        return loaded[name, method]

    yield get
    for model in loaded.values():
        model.close()


@pytest.fixture(scope="session")
def pair(directory_of: Callable[[str], Path]) -> Iterator[QSPECModel]:
    """A llama that drafts for itself with ``w8a8``."""
    with QSPECModel(str(directory_of("llama")), "w8a8", "none", kv_tokens=1024) as model:
        yield model
