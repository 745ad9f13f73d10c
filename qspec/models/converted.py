"""Models in the one form that the workers load, converted once and cached.

A converted model is a directory below ``config.cache_directory()/models``:

====================  =================================================================================================
``config.json``       ``DecoderConfig.to_json()``
``weights.safetensors``  canonical fp32 tensors (``qspec.models.config``)
``int8.safetensors``  for every linear weight ``x``: ``x.codes`` int8 ``[out, in]``, ``x.scales`` fp32 ``[out]``
                      (``qspec.models.int8_weights``)
``tokenizer/``        a tokenizer directory (``qspec.models.tokenizer``)
``converted.json``    fingerprint and file sizes
====================  =================================================================================================

Its name ends in a key over the source files (path, size, time of change) and ``CONVERTER_VERSION``. It is written
beside its place and renamed, under a file lock, so it is there as a whole or not at all, and two processes convert it
once.
Nothing here imports torch: with a warm cache the coordinator loads a tokenizer in a moment.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from qspec.config import cache_directory
from qspec.errors import ModelError
from qspec.interfaces import Progress
from qspec.models.config import DecoderConfig
from qspec.models.resolve import MODEL_FILES, ModelSource, SourceKind, resolve
from qspec.models.tokenizer import SETTINGS_FILE

if TYPE_CHECKING:
    from qspec.models.mapped_tensors import MappedTensors

CONVERTER_VERSION = 1
"""Raised whenever a conversion yields other files, so that cached ones are made anew."""

_WEIGHTS, _INT8, _CONFIG, _MANIFEST, _TOKENIZER = (
    "weights.safetensors", "int8.safetensors", "config.json", "converted.json", "tokenizer",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedModel:
    """A converted model on disk."""

    directory: Path
    """Where it is."""
    config: DecoderConfig
    """Its architecture."""
    fingerprint: str
    """SHA-256 of configuration and weights: equal for equal models, whatever they were converted from."""

    @property
    def tokenizer_directory(self) -> Path:
        """For ``Tokenizer.load``."""
        return self.directory / _TOKENIZER

    def open_weights(self) -> MappedTensors:
        """The canonical fp32 tensors, mapped read-only."""
        from qspec.models.mapped_tensors import MappedTensors

        return MappedTensors(self.directory / _WEIGHTS)

    def open_int8(self) -> MappedTensors:
        """The int8 codes and scales, mapped read-only."""
        from qspec.models.mapped_tensors import MappedTensors

        return MappedTensors(self.directory / _INT8)


def prepare(name: str, *, progress: Progress) -> ConvertedModel:
    """The converted model ``name`` (``qspec.models.resolve``), from the cache or converted now.

    Raises ``ModelError`` when the model cannot be found, read or understood, or the cache cannot be written.
    """
    source = resolve(name)
    directory = _directory(source)
    if (model := _open(directory)) is not None:
        return model
    with _locked(directory, progress):
        if (model := _open(directory)) is not None:
            return model
        from qspec.models.conversion import convert

        with _replacing(directory) as partial:
            config, fingerprint = convert(
                source,
                weights=partial / _WEIGHTS,
                int8=partial / _INT8,
                tokenizer=partial / _TOKENIZER,
                progress=progress,
            )
            sizes = {file: (partial / file).stat().st_size for file in (_WEIGHTS, _INT8)}
            (partial / _CONFIG).write_text(json.dumps(config.to_json(), indent=2), "utf-8")
            manifest = {"source": str(source.path), "revision": source.revision, "fingerprint": fingerprint,
                        "sizes": sizes}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=2), "utf-8")
        return ConvertedModel(directory=directory, config=config, fingerprint=fingerprint)


def prepare_tokenizer(name: str) -> Path:
    """The tokenizer directory of model ``name``: the converted model's, else converted alone and cached.

    Torch-free when either is cached. Raises as ``prepare``.
    """
    source = resolve(name)
    directory = _directory(source)
    alone = directory.with_name(f"{directory.name}-{_TOKENIZER}")
    for cached in (directory / _TOKENIZER, alone):
        if (cached / SETTINGS_FILE).is_file():
            return cached
    with _locked(alone, lambda _text, _share: None):
        if not (alone / SETTINGS_FILE).is_file():
            from qspec.models.tokenizer_files import write_tokenizer

            with _replacing(alone) as partial:
                write_tokenizer(source, partial)
    return alone


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
    """The model in ``directory``, or None when there is none or it was tampered with."""
    try:
        manifest = json.loads((directory / _MANIFEST).read_text("utf-8"))
        if any((directory / file).stat().st_size != size for file, size in manifest["sizes"].items()):
            return None
        config = DecoderConfig.from_json(json.loads((directory / _CONFIG).read_text("utf-8")))
        if not (directory / _TOKENIZER / SETTINGS_FILE).is_file():
            return None
        return ConvertedModel(directory=directory, config=config, fingerprint=manifest["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(directory: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of one cache entry; it goes with the process, however that ends."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory.with_name(f".{directory.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            progress("waiting for another process that converts the model", None)
            lock.acquire()
    except OSError as error:
        raise _unwritable(error) from error
    try:
        yield
    finally:
        lock.release()


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
        raise _unwritable(error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(error: OSError) -> ModelError:
    return ModelError(
        f"the model cache {cache_directory()} cannot be written ({error.strerror or error}); "
        "free some space there or set QSPEC_CACHE_DIR to another directory"
    )
