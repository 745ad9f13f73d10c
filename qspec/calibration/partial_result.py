"""What a calibration has finished, on disk, so that an interrupted one goes on where it was.

Beside the output directory lies ``.NAME.partial`` with a file per half layer, each written under another name and
renamed: it is whole or not there. The output directory itself appears by a rename when all is done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import filelock
import safetensors
import safetensors.torch
from torch import Tensor

from qspec.errors import InvalidInput

_SETTINGS = "settings.json"


class PartialResult:
    """The finished steps of one calibration. Made by ``opened``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def model(self) -> Path:
        """Where the finished model is put together, empty at first; ``publish`` gives it its name."""
        return self._directory / "model"

    @property
    def steps(self) -> int:
        """How many steps were finished."""
        return len(list(self._directory.glob("*.safetensors")))

    def load(self, step: str) -> dict[str, Tensor] | None:
        """The tensors of a finished step; None for one that is still to be done."""
        path = self._directory / f"{step}.safetensors"
        return safetensors.torch.load_file(path) if path.is_file() else None

    def save(self, step: str, tensors: Mapping[str, Tensor]) -> None:
        """Finish a step."""
        path = self._directory / f"{step}.safetensors"
        writing = path.with_suffix(".writing")
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, writing)
        writing.replace(path)

    def publish(self, output: Path) -> None:
        """Make the finished model ``output``, and forget the steps."""
        os.sync()  # a machine that stops now finds the model whole, or the steps
        self.model.rename(output)
        shutil.rmtree(self._directory)


def require_absent(output: Path) -> None:
    """``InvalidInput`` when there is something at ``output``."""
    if output.exists():
        raise InvalidInput.field("output", f"{output} exists already; choose another directory, or remove it")


@contextmanager
def opened(output: Path, settings: Mapping[str, str | int]) -> Iterator[PartialResult]:
    """The partial result for ``output``; one of other ``settings`` is thrown away.

    ``InvalidInput`` when ``output`` exists, another process is at it, or nothing can be written there.
    """
    directory = output.with_name(f".{output.name}.partial")
    require_absent(output)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory / "lock")
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InvalidInput.field("output", f"another process is making {output}") from error
    except OSError as error:
        raise InvalidInput.field("output", f"{output} cannot be made ({error.strerror or error})") from error
    try:
        _keep_if_same(directory, settings)
        yield PartialResult(directory)
    except (OSError, safetensors.SafetensorError) as error:
        raise InvalidInput.field(
            "output", f"{directory} cannot be written ({error}); make room, then give the same command to go on"
        ) from error
    finally:
        lock.release()


def _keep_if_same(directory: Path, settings: Mapping[str, str | int]) -> None:
    record = json.dumps(dict(settings), sort_keys=True)
    path = directory / _SETTINGS
    if not path.is_file() or path.read_text("utf-8") != record:
        for stale in directory.iterdir():
            if stale.is_dir():
                shutil.rmtree(stale)
            elif stale.name != "lock":
                stale.unlink()
        path.write_text(record, "utf-8")
    model = directory / "model"
    shutil.rmtree(model, ignore_errors=True)  # of a process that was killed while putting it together
    model.mkdir()
