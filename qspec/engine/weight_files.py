"""The files that weights are mapped from: the converted model's own, and stores in the cache.

A tensor that the converted model holds as it is needed (fp32, or codes that came with the model) is mapped where it
lies. All others, the formats that are made here, are written once into a store (``qspec.memory.weight_store``) in the
cache, under a name that depends on the model, the formats and ``ENCODING_VERSION``. So a start copies nothing, and the
pages are shared by whoever maps them: both workers, and all stacks on a host.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from qspec.config import cache_directory
from qspec.engine.weights import WeightRegion
from qspec.errors import ModelError
from qspec.interfaces import Progress, Region, RegionWriter, unwatched
from qspec.memory.layout import REGION_ALIGNMENT, RegionSpec, region_bytes
from qspec.memory.mapped_file import MappedFile, MappedRegions
from qspec.memory.weight_store import StoreDamaged, StoreWriter, WeightStore, open_store, place_regions
from qspec.models.cache_entry import locked, unwritable
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS
from qspec.quant.weight_formats import WEIGHT_FORMATS

ENCODING_VERSION = 1
"""Raised whenever a codec gives other bytes, so that stores are made anew."""
_LONGEST_LABEL = 48


def open_weights(
    wanted: Sequence[WeightRegion], fingerprint: str, model: LayerWeights, progress: Progress
) -> MappedRegions:
    """Map the ``wanted`` regions of the model with this fingerprint, making the store of those that need one.

    Raises ``ModelError`` when the cache cannot be written, ``InvalidInput`` naming a layer that cannot be encoded.
    """
    places = {region.spec.name: _place(region, model) for region in wanted}
    made = [region for region in wanted if places[region.spec.name] is None]
    files: list[MappedFile] = []
    regions: list[Region] = []
    try:
        if made:
            placed = place_regions([region.spec for region in made], file=1)
            store = _open_or_make(made, placed, fingerprint, model, progress)
            files.append(store.file)
            regions += placed
            for note in store.notes:
                progress(note, None)
        paths = list(dict.fromkeys(place[0] for place in places.values() if place is not None))
        numbers = {path: len(files) + 1 + index for index, path in enumerate(paths)}
        for path in paths:
            files.append(_map(path))
        for region in wanted:
            if (place := places[region.spec.name]) is not None:
                regions.append(_in_model(region.spec, numbers[place[0]], place[1]))
    except BaseException:
        for file in files:
            file.close()
        raise
    for placed_region in regions:
        files[placed_region.file - 1].read_ahead(placed_region.offset, region_bytes(placed_region))
    _tell_stored(wanted, model, progress)
    return MappedRegions(files, regions)


def _place(region: WeightRegion, model: LayerWeights) -> tuple[Path, int] | None:
    """Where the model itself has a region; None where it has not, or at an address that vector loads are slow at."""
    place = model.place(region.layer, region.weights, region.part)
    return place if place is not None and place[1] % REGION_ALIGNMENT == 0 else None


def _in_model(spec: RegionSpec, file: int, offset: int) -> Region:
    dtype = str(spec.dtype).removeprefix("torch.")
    return Region(
        name=spec.name, dtype=dtype, shape=spec.shape, offset=offset, writer=RegionWriter.VERIFIER, file=file)


def _open_or_make(
    made: Sequence[WeightRegion], placed: Sequence[Region], fingerprint: str, model: LayerWeights, progress: Progress
) -> WeightStore:
    path = _store_path(made, placed, fingerprint)
    if (store := _open(path, fingerprint, placed, progress)) is not None:
        return store
    with locked(path, progress, work="writes the weights"):
        if (store := _open(path, fingerprint, placed, unwatched)) is not None:  # of the process that had the lock
            return store
        try:
            with StoreWriter(path, fingerprint, placed) as writer:
                _write(writer, made, model, progress)
            return open_store(path, fingerprint, placed)
        except OSError as error:
            raise unwritable(error) from error
        except StoreDamaged as damage:
            raise ModelError(f"{path} was written, and yet {damage}; is the disk in order?") from damage


def _open(path: Path, fingerprint: str, placed: Sequence[Region], progress: Progress) -> WeightStore | None:
    """The store at ``path``; None, with a line that says why, when there is no whole one of these regions."""
    try:
        return open_store(path, fingerprint, placed)
    except FileNotFoundError:
        return None
    except StoreDamaged as damage:
        progress(f"{path} is written anew: {damage}", None)
        return None
    except OSError as error:
        raise _unmappable(path, error) from error


def _map(path: Path) -> MappedFile:
    try:
        return MappedFile.open(path)
    except OSError as error:
        raise _unmappable(path, error) from error


def _unmappable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path} cannot be mapped ({error.strerror or error}); make it readable, or delete it")


def _store_path(made: Sequence[WeightRegion], placed: Sequence[Region], fingerprint: str) -> Path:
    label = "+".join(dict.fromkeys(region.weights for region in made))[:_LONGEST_LABEL]
    digest = hashlib.sha256(f"{ENCODING_VERSION}|{fingerprint}".encode())
    for region in placed:
        digest.update(f"|{region.name}|{region.dtype}|{region.shape}|{region.offset}".encode())
    return cache_directory() / "weights" / fingerprint[:16] / f"{label}-{digest.hexdigest()[:16]}.weights"


def _write(store: StoreWriter, made: Sequence[WeightRegion], model: LayerWeights, progress: Progress) -> None:
    """Encode layer by layer, and note how many weights were rounded where the format has exceptions."""
    layers = dict.fromkeys((region.layer, region.weights) for region in made)
    rounded: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for index, (layer, weights) in enumerate(layers):
        progress(f"writing {weights} weights to the cache, once", index / len(layers))
        parts = model.parts(layer, weights)
        for region in made:
            if (region.layer, region.weights) == (layer, weights):
                store.write(region.spec.name, parts[region.part])
        if WEIGHT_FORMATS[weights].counts_rounding:
            weight: Tensor = model.tensors[layer].t()
            rounded[weights] += int((CODECS[weights].decode(parts) != weight).sum())
            counted[weights] += weight.numel()
    for weights, count in counted.items():
        store.note(f"{rounded[weights]} of {count} weights were rounded to fit {weights}")
    progress("writing weights to the disk", 1.0)


def _tell_stored(wanted: Sequence[WeightRegion], model: LayerWeights, progress: Progress) -> None:
    """One line for each format in which layers came with the model."""
    for weights in dict.fromkeys(region.weights for region in wanted):
        layers = list(dict.fromkeys(region.layer for region in wanted if region.weights == weights))
        if weights != "fp32" and (told := model.tell_stored(layers, weights)):
            progress(told, None)
