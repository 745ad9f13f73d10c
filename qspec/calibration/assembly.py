"""Putting a quantised model's directory together from the finished steps."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qspec.calibration.partial_result import PartialResult
from qspec.models.converted import INT8_FILE, STORED_FILE, WEIGHTS_FILE, ConvertedModel, describe_converted
from qspec.models.decoder import linear_names
from qspec.models.int8_weights import quantize_rows
from qspec.models.safetensors_writer import SafetensorsWriter
from qspec.quant.codecs import CODECS

PART, FP32 = "part/", "fp32/"
"""Prefixes of a step's tensors: ``LAYER.PART`` of the format, and canonical fp32 tensors that scaling changed."""


def assemble(
    model: ConvertedModel, tensors: Mapping[str, Tensor], weights: str, steps: Sequence[str], partial: PartialResult,
    *, origin: str,
) -> None:
    """Write all files of the model that is made of ``model`` (whose canonical tensors are ``tensors``) into
    ``partial.model``; ``origin`` says how it was made."""
    names = linear_names(model.config)
    shapes = {name: CODECS[weights].shapes(tensors[name].shape[1], tensors[name].shape[0], name) for name in names}
    digest = hashlib.sha256(f"{model.fingerprint} {weights}".encode())
    changed: dict[str, str] = {}
    with SafetensorsWriter(
        partial.model / STORED_FILE,
        {f"{name}.{part}": entry for name, parts in shapes.items() for part, entry in parts.items()},
    ) as stored:
        for step in steps:
            for name, tensor in sorted(_finished(partial, step).items()):
                digest.update(name.encode())
                digest.update(tensor.numpy().data)
                if name.startswith(PART):
                    stored.write(name.removeprefix(PART), tensor)
                else:
                    changed[name.removeprefix(FP32)] = step
    _write_weights(model, tensors, changed, partial)
    shutil.copytree(model.tokenizer_directory, partial.model / model.tokenizer_directory.name)
    describe_converted(
        partial.model, model.config, digest.hexdigest(), dict.fromkeys(names, weights),
        source=str(model.directory), revision=origin,
    )


def _write_weights(
    model: ConvertedModel, tensors: Mapping[str, Tensor], changed: Mapping[str, str], partial: PartialResult
) -> None:
    """The fp32 and int8 files: those of ``model``, or new ones where tensors (by name, with their step) changed."""
    if not changed:
        for file in (WEIGHTS_FILE, INT8_FILE):
            _link(model.directory / file, partial.model / file)
        return
    with model.open_int8() as int8:
        fp32_shapes = {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in tensors}
        int8_shapes = {name: (int8[name].dtype, tuple(int8[name].shape)) for name in int8}
        with (
            SafetensorsWriter(partial.model / WEIGHTS_FILE, fp32_shapes) as fp32_file,
            SafetensorsWriter(partial.model / INT8_FILE, int8_shapes) as int8_file,
        ):
            for name in tensors:
                step = changed.get(name)
                tensor = tensors[name] if step is None else _finished(partial, step)[FP32 + name]
                fp32_file.write(name, tensor)
                if f"{name}.codes" in int8:
                    codes, scales = (
                        (int8[f"{name}.codes"], int8[f"{name}.scales"]) if step is None else quantize_rows(tensor.t())
                    )
                    int8_file.write(f"{name}.codes", codes)
                    int8_file.write(f"{name}.scales", scales)


def _finished(partial: PartialResult, step: str) -> dict[str, Tensor]:
    tensors = partial.load(step)
    assert tensors is not None, f"{step} is finished before the model is put together"
    return tensors


def _link(source: Path, target: Path) -> None:
    """The same file under another name where the file system can, else a copy: neither is ever written to again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
