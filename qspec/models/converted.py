"""Models in the one form that the workers load, converted once and cached.

A converted model is a directory below ``config.cache_directory()/models``, or one that a user names:

====================  =================================================================================================
``config.json``       ``DecoderConfig.to_json()``
``weights.safetensors``  canonical fp32 tensors (``qspec.models.config``)
``int8.safetensors``  for every linear weight ``x``: ``x.codes`` int8 ``[out, in]``, ``x.scales`` fp32 ``[out]``
                      (``qspec.models.int8_weights``)
``stored.safetensors``  for every linear weight ``x`` that came quantised: its codes as the parts of one of our formats,
                      ``x.PART`` (``qspec.quant.codecs``); absent when there is none
``tokenizer/``        a tokenizer directory (``qspec.models.tokenizer``)
``converted.json``    fingerprint, file sizes, and the format of each weight in ``stored.safetensors``
====================  =================================================================================================

The fp32 tensor of a weight that came quantised is what its codes stand for.

The name of one in the cache ends in a key over the source files (path, size, time of change) and
``CONVERTER_VERSION``. It is written beside its place and renamed, under a file lock, so it is there as a whole or not
at all, and two processes convert it once.
Nothing here imports torch: with a warm cache the coordinator loads a tokenizer in a moment.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.config import cache_directory
from qspec.errors import ModelError
from qspec.interfaces import Progress
from qspec.models.cache_entry import locked, unwritable
from qspec.models.config import DecoderConfig
from qspec.models.resolve import CONVERTED_FILE, MODEL_FILES, ModelSource, SourceKind, resolve
from qspec.models.tokenizer import SETTINGS_FILE
from qspec.quant.weight_formats import WEIGHT_FORMATS

if TYPE_CHECKING:
    from qspec.models.layer_weights import LayerWeights
    from qspec.models.mapped_tensors import MappedTensors

CONVERTER_VERSION = 2
"""Raised whenever a conversion yields other files, so that cached ones are made anew."""

WEIGHTS_FILE, INT8_FILE, STORED_FILE = "weights.safetensors", "int8.safetensors", "stored.safetensors"
CONFIG_FILE, TOKENIZER_DIRECTORY = "config.json", "tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """A converted model on disk."""

    directory: Path
    """Where it is."""
    config: DecoderConfig
    """Its architecture."""
    fingerprint: str
    """SHA-256 of configuration and weights: equal for equal models, whatever they were converted from."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Format of each linear weight that came quantised, by canonical name; its codes are in ``open_stored``."""

    @property
    def tokenizer_directory(self) -> Path:
        """For ``Tokenizer.load``."""
        return self.directory / TOKENIZER_DIRECTORY

    def open_weights(self) -> MappedTensors:
        """The canonical fp32 tensors, mapped read-only."""
        from qspec.models.mapped_tensors import MappedTensors

        return MappedTensors(self.directory / WEIGHTS_FILE)

    def open_layers(self) -> LayerWeights:
        """The layers in any format, a context manager."""
        from qspec.models.layer_weights import LayerWeights

        return LayerWeights(self)

    def open_int8(self) -> MappedTensors:
        """The int8 codes and scales, mapped read-only."""
        from qspec.models.mapped_tensors import MappedTensors

        return MappedTensors(self.directory / INT8_FILE)

    def open_stored(self) -> MappedTensors:
        """The parts ``NAME.PART`` of the weights in ``stored``, mapped read-only. ``ModelError`` without any."""
        from qspec.models.mapped_tensors import MappedTensors

        return MappedTensors(self.directory / STORED_FILE)


def prepare(name: str, *, progress: Progress) -> ConvertedModel:
    """The converted model ``name`` (``qspec.models.resolve``), from the cache or converted now.

    Raises ``ModelError`` when the model cannot be found, read or understood, or the cache cannot be written.
    """
    source = resolve(name)
    if source.kind is SourceKind.CONVERTED:
        return open_converted(source.path)
    directory = _directory(source)
    if (model := _open(directory)) is not None:
        return model
    with locked(directory, progress, work="converts the model"):
        if (model := _open(directory)) is not None:
            return model
        from qspec.models.conversion import convert

        with _replacing(directory) as partial:
            conversion = convert(
                source,
                weights=partial / WEIGHTS_FILE,
                int8=partial / INT8_FILE,
                stored=partial / STORED_FILE,
                tokenizer=partial / TOKENIZER_DIRECTORY,
                progress=progress,
            )
            describe_converted(
                partial, conversion.config, conversion.fingerprint, conversion.stored,
                source=str(source.path), revision=source.revision,
            )
        return open_converted(directory)


def describe_converted(
    directory: Path, config: DecoderConfig, fingerprint: str, stored: Mapping[str, str], *, source: str, revision: str
) -> None:
    """Write ``config.json`` and ``converted.json`` beside the files of tensors: the last step of making a model."""
    files = (WEIGHTS_FILE, INT8_FILE, *((STORED_FILE,) if stored else ()))
    sizes = {file: (directory / file).stat().st_size for file in files}
    (directory / CONFIG_FILE).write_text(json.dumps(config.to_json(), indent=2), "utf-8")
    manifest = {
        "source": source, "revision": revision, "fingerprint": fingerprint, "sizes": sizes, "stored": dict(stored)
    }
    (directory / CONVERTED_FILE).write_text(json.dumps(manifest, indent=2), "utf-8")


def open_converted(directory: Path) -> ConvertedModel:
    """The converted model in ``directory``; ``ModelError`` names the file that is missing, cut or damaged."""
    remedy = "copy the directory again, or make the model anew"
    try:
        manifest = json.loads((directory / CONVERTED_FILE).read_text("utf-8"))
        stored, fingerprint = manifest.get("stored", {}), str(manifest["fingerprint"])
        sizes = dict(manifest["sizes"])
        config = DecoderConfig.from_json(json.loads((directory / CONFIG_FILE).read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{directory} has a {CONVERTED_FILE} but is no whole converted model ({CONFIG_FILE} or {CONVERTED_FILE}: "
            f"{type(error).__name__}); {remedy}"
        ) from error
    if not isinstance(stored, dict) or (unknown := {str(name) for name in stored.values()} - WEIGHT_FORMATS.keys()):
        formats = ", ".join(sorted(unknown)) if isinstance(stored, dict) else repr(stored)
        raise ModelError(f"{directory / CONVERTED_FILE} stores weights in unknown formats ({formats}); update qspec")
    for file in (WEIGHTS_FILE, INT8_FILE, *((STORED_FILE,) if stored else ())):
        found = (directory / file).stat().st_size if (directory / file).is_file() else None
        if found is None:
            raise ModelError(f"{directory / file} is missing; {remedy}")
        if found != sizes.get(file):
            raise ModelError(f"{directory / file} has {found} bytes instead of {sizes.get(file)}; {remedy}")
    if not (directory / TOKENIZER_DIRECTORY / SETTINGS_FILE).is_file():
        raise ModelError(f"{directory / TOKENIZER_DIRECTORY / SETTINGS_FILE} is missing; {remedy}")
    return ConvertedModel(directory=directory, config=config, fingerprint=fingerprint, stored=stored)


def prepare_tokenizer(name: str) -> Path:
    """The tokenizer directory of model ``name``: the converted model's, else converted alone and cached.

    Torch-free when either is cached. Raises as ``prepare``.
    """
    source = resolve(name)
    if (cached := _cached_tokenizer(source)) is not None:
        return cached
    alone = _alone(source)
    with locked(alone, lambda _text, _share: None, work="converts the tokenizer"):
        if not (alone / SETTINGS_FILE).is_file():
            from qspec.models.tokenizer_files import write_tokenizer

            with _replacing(alone) as partial:
                write_tokenizer(source, partial)
    return alone


def cached_tokenizer(name: str) -> Path | None:
    """What ``prepare_tokenizer`` gives, where it need not download or convert anything for that; None elsewhere."""
    try:
        return _cached_tokenizer(resolve(name, fetch=False))
    except ModelError:
        return None


def _cached_tokenizer(source: ModelSource) -> Path | None:
    if source.kind is SourceKind.CONVERTED:
        return open_converted(source.path).tokenizer_directory
    directories = (_directory(source) / TOKENIZER_DIRECTORY, _alone(source))
    return next((directory for directory in directories if (directory / SETTINGS_FILE).is_file()), None)


def _alone(source: ModelSource) -> Path:
    """Where a tokenizer is that was converted without its model."""
    directory = _directory(source)
    return directory.with_name(f"{directory.name}-{TOKENIZER_DIRECTORY}")


def _directory(source: ModelSource) -> Path:
    if source.kind is SourceKind.GGUF:
        files = [source.path]
    else:
        files = [
            file
            for file in sorted(source.path.iterdir())
            if file.is_file() and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in MODEL_FILES)
        ]
    stamps = [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([CONVERTER_VERSION, stamps]).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", Path(source.name).name).strip("-.")[:40] or "model"
    return cache_directory() / "models" / f"{readable}-{key}"


def _open(directory: Path) -> ConvertedModel | None:
    """The model in ``directory`` of the cache, or None when there is none or it was tampered with."""
    try:
        return open_converted(directory)
    except ModelError:
        return None


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """A partial directory that takes the place of ``directory`` when all went well, and vanishes otherwise."""
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    except OSError as error:
        raise unwritable(error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
