"""A model whose files come late is waited for, as a whole."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from qspec.errors import InvalidInput, ModelError
from qspec.models import arrival
from qspec.models.arrival import model_arrival


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival, "LOOK_EVERY_S", 0.01)


class Told:
    """What was told of the progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, what: str, share: float | None) -> None:
        """Note it."""
        self.lines.append(what)


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
def test_a_model_that_is_there_is_not_waited_for(wait_s: float, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    told = Told()
    asyncio.run(asyncio.wait_for(model_arrival(str(tmp_path / "a.gguf"), wait_s, told, steady_s=30), 5))
    assert told.lines == []


def test_without_waiting_the_loader_tells(tmp_path: Path) -> None:
    asyncio.run(model_arrival(str(tmp_path / "none.gguf"), 0, Told()))


def test_it_is_told_once_and_refused_in_the_end(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(ModelError, match="does not exist"):
        asyncio.run(model_arrival(str(tmp_path / "none.gguf"), 0.1, told))
    assert told.lines == [f"waiting for the model, at most 0.1 s: {tmp_path}/none.gguf does not exist"]


def test_a_copy_in_progress_is_waited_for(tmp_path: Path) -> None:
    """A directory, as copies make it: first the directory, then one file after the other, each growing."""
    model = tmp_path / "model"

    async def fill() -> None:
        model.mkdir()
        await asyncio.sleep(0.05)
        (model / "config.json").touch()
        with (model / "model.safetensors").open("wb", buffering=0) as file:
            for _ in range(10):
                file.write(b"x")
                await asyncio.sleep(0.02)

    async def scenario() -> None:
        waiting = asyncio.create_task(model_arrival(str(model), 60, told, steady_s=0.3))
        await asyncio.sleep(0.03)
        await fill()
        assert not waiting.done()
        await asyncio.wait_for(waiting, 5)

    told = Told()
    asyncio.run(scenario())
    assert len(told.lines) == 1


@pytest.mark.parametrize("wait_s", [-1.0, math.nan])
def test_no_number_of_seconds(wait_s: float) -> None:
    with pytest.raises(InvalidInput, match="wait_for_model: must be a number of seconds from 0 on"):
        asyncio.run(model_arrival("smollm2", wait_s, Told()))
