"""A widened model as the workers take one: in memory, or written to a directory in the converted form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from benchmarks.widening import WidenedTensors, widened_fingerprint
from qspec.errors import InvalidInput
from qspec.interfaces import Progress
from qspec.models.converted import (
    INT8_FILE,
    TOKENIZER_DIRECTORY,
    WEIGHTS_FILE,
    ConvertedModel,
    describe_converted,
    open_converted,
)
from qspec.models.decoder import linear_names
from qspec.models.int8_weights import quantize_rows
from qspec.models.safetensors_writer import SafetensorsWriter
from qspec.quant.codecs import CODECS


class WidenedWeights:
    """A context manager: the layers of a model, widened, as ``qspec.models.layer_weights.LayerWeights`` has its own."""

    def __init__(
        self, model: ConvertedModel, factor: int, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self._original = model.open_weights()
        self.tensors = WidenedTensors(self._original, model.config, factor, seed=seed, device=device)
        self.config = self.tensors.config
        self.fingerprint = widened_fingerprint(model.fingerprint, factor, seed, self.tensors.device)

    def is_stored(self, name: str, weights_format: str) -> bool:
        """Whether codes came with the model: never."""
        return False

    def parts(self, name: str, weights_format: str) -> Mapping[str, Tensor]:
        """The parts of layer ``name`` in ``weights_format``, made anew each time."""
        return CODECS[weights_format].encode(self.tensors[name].t(), name)

    def place(self, name: str, weights_format: str, part: str) -> None:
        """Where a part lies in a file: nowhere. On a CPU, workers keep what they make of it in their cache."""

    def tell_stored(self, names: list[str], weights_format: str) -> None:
        """What came with the model: nothing."""

    def __enter__(self) -> WidenedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._original.__exit__(kind, error, trace)


@dataclass(frozen=True, slots=True, kw_only=True)
class WidenedModel(ConvertedModel):
    """A converted model, widened as it is loaded; on a GPU its tensors are streamed into the arena."""

    original: ConvertedModel
    factor: int
    device: str
    """Where tensors are made."""

    @classmethod
    def of(cls, original: ConvertedModel, factor: int, device: str) -> WidenedModel:
        """``original``, ``factor`` times as wide."""
        with WidenedWeights(original, factor, device=device) as widened:
            return cls(
                directory=original.directory, config=widened.config, fingerprint=widened.fingerprint,
                original=original, factor=factor, device=device)

    def open_layers(self) -> WidenedWeights:  # type: ignore[override]
        """See ``ConvertedModel``; nothing is kept."""
        return WidenedWeights(self.original, self.factor, device=self.device)


def write_widened(
    model: ConvertedModel, factor: int, directory: Path, *, seed: int, progress: Progress
) -> ConvertedModel:
    """Write ``model``, widened, to ``directory``, which must not exist yet, and open it: a name for ``--model``.

    Tensor by tensor: memory stays at a few of the largest one. ``InvalidInput`` when the directory exists or the disk
    is too small.
    """
    if directory.exists():
        raise InvalidInput.field("output", f"{directory} exists; name another directory, or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with WidenedWeights(model, factor, seed=seed) as widened:
        tensors = widened.tensors
        linears = linear_names(widened.config)
        shapes = {name: tensors.shape(name) for name in tensors}
        needed = sum(torch.Size(shape).numel() * (5 if name in linears else 4) for name, shape in shapes.items())
        if needed > (free := shutil.disk_usage(directory.parent).free):
            raise InvalidInput.field(
                "output", f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free there")
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        try:
            _write(widened, shapes, linears, partial, progress)
            shutil.copytree(model.tokenizer_directory, partial / TOKENIZER_DIRECTORY)
            describe_converted(
                partial, widened.config, widened.fingerprint, {},
                source=f"{model.directory} widened {factor} times", revision=str(seed))
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    progress("widening", 1.0)
    return open_converted(directory)


def _write(
    widened: WidenedWeights, shapes: Mapping[str, tuple[int, ...]], linears: Sequence[str], directory: Path,
    progress: Progress,
) -> None:
    """The two files of tensors (``qspec.models.converted``)."""
    announced = {name: (torch.float32, shape) for name, shape in shapes.items()}
    codes = {f"{name}.codes": (torch.int8, shapes[name][::-1]) for name in linears}
    scales = {f"{name}.scales": (torch.float32, shapes[name][1:]) for name in linears}
    with (
        SafetensorsWriter(directory / WEIGHTS_FILE, announced) as fp32_file,
        SafetensorsWriter(directory / INT8_FILE, {**scales, **codes}) as int8_file,
    ):
        for index, name in enumerate(shapes):
            progress("widening", index / len(shapes))
            tensor = widened.tensors[name]
            fp32_file.write(name, tensor)
            if name in linears:
                layer_codes, layer_scales = quantize_rows(tensor.t())
                int8_file.write(f"{name}.codes", layer_codes)
                int8_file.write(f"{name}.scales", layer_scales)
