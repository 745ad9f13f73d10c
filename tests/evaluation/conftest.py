"""A tiny model that every group size divides, converted once, and one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qspec.evaluation.scoring import ScoredModel
from tests.models.quiet import prepare_quietly
from tests.tiny_models import write_tiny_model

TEXTS = (tuple(7 * index % 300 + 3 for index in range(33)), (5, 9, 5, 9, 5, 17, 250))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the model; conversions go to a cache of their own."""
    directory = tmp_path_factory.mktemp("evaluation")
    write_tiny_model(directory / "wide", "llama_wide")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("QSPEC_CACHE_DIR", str(directory / "cache"))
        yield directory / "wide"


@pytest.fixture(scope="session")
def scored(wide: Path) -> ScoredModel:
    """The model to score with."""
    return ScoredModel(prepare_quietly(wide))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
