"""Filling a GPU arena with weights, one tensor at a time.

On a CPU weights are files that both workers map. A GPU maps no files: what the verifier's plan says is encoded from
the canonical tensors on the way into the arena, so that neither process ever has a second copy. At most one layer's
chunk of rows is in flight: it is copied to the GPU as it is in the file, split or encoded there where that gives the
same bits as on a CPU, and written to its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from qspec.engine.weights import WeightRegion
from qspec.interfaces import Progress
from qspec.memory.attachment import Arena
from qspec.quant.codecs import CODECS
from qspec.quant.weight_formats import WEIGHT_FORMATS

CHUNK_BYTES = 64 << 20
"""Bytes of fp32 weights in flight; encoding them takes some ten times as much of the GPU's memory for a moment."""
_ENCODED_ON_DEVICE = (
    "fp16-planes", "e4m3-plane", "fp32-rows", "int8-row", "int8-g64", "int8-g128", "int8-nibbles-g64", "int4-plane-g64",
    "int4-g64", "int4-g128",
)
"""Formats whose parts are made row by row, by operations that round alike on every device."""


class LayerSource(Protocol):
    """Where weights come from: a converted model (``qspec.models.layer_weights.LayerWeights``), or one in memory."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The canonical fp32 tensors by name."""
        ...

    def is_stored(self, name: str, weights_format: str) -> bool:
        """Whether layer ``name`` came with the model in ``weights_format``."""
        ...

    def parts(self, name: str, weights_format: str) -> Mapping[str, Tensor]:
        """The parts of layer ``name`` in ``weights_format``. ``InvalidInput`` when its inputs cannot be grouped."""
        ...


def stream_weights(
    arena: Arena, wanted: Sequence[WeightRegion], source: LayerSource, progress: Progress, *,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Write the ``wanted`` regions of ``arena``; tells how many weights were rounded where a format has exceptions.

    ``InvalidInput`` naming a layer that cannot be encoded.
    """
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    for region in wanted:
        layers.setdefault((region.layer, region.weights), {})[region.part] = arena.tensor(region.spec.name)
    rounded: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for index, ((layer, weights), places) in enumerate(layers.items()):
        progress("loading the weights", index / len(layers))
        if weights == "fp32" or (weights in _ENCODED_ON_DEVICE and not source.is_stored(layer, weights)):
            tensor = source.tensors[layer]
            counted[weights] += tensor.numel()
            rounded[weights] += _encode(layer, weights, places, tensor, chunk_bytes)
            del tensor  # before the next one is made
        else:
            for part, values in source.parts(layer, weights).items():
                if part in places:
                    _copy(values, places[part], chunk_bytes)
    for weights, count in rounded.items():
        if count:
            progress(f"{count} of {counted[weights]} weights were rounded to fit {_stored_as(weights, layers)}", None)
    torch.cuda.empty_cache()  # what the encoding needed is others' now; nothing where no GPU is in use
    progress("loading the weights", 1.0)


def _encode(layer: str, weights: str, places: Mapping[str, Tensor], tensor: Tensor, chunk_bytes: int) -> int:
    """Encode ``tensor`` ``[in, out]`` into ``places`` on their device; how many weights were rounded."""
    if weights == "fp32":  # whatever its shape
        (place,) = places.values()
        return _copy(tensor, place, chunk_bytes)
    codec, rounded = CODECS[weights], 0
    device = next(iter(places.values())).device
    for rows in _chunks(tensor.shape[1], tensor.shape[0] * tensor.element_size(), chunk_bytes):
        weight = tensor[:, rows].to(device).t().float().contiguous()  # [rows, in]
        parts = codec.encode(weight, layer)
        for part, place in places.items():
            place[rows][:, : parts[part].shape[1]].copy_(parts[part])  # places of rows may be longer
        if WEIGHT_FORMATS[weights].counts_rounding:
            rounded += int((codec.decode(parts) != weight).sum())
    return rounded


def _copy(tensor: Tensor, place: Tensor, chunk_bytes: int) -> int:
    """Copy ``tensor`` to ``place``, of its shape but for longer rows, and maybe of another float type; how many values
    were rounded.
    """
    rounded = 0
    if tensor.ndim == 2:
        place = place[:, : tensor.shape[1]]
    width = tensor[:1].numel() * tensor.element_size()
    for rows in _chunks(len(tensor), width, chunk_bytes):
        values = tensor[rows].to(place.device)
        place[rows].copy_(values)
        if place.dtype is not tensor.dtype:
            rounded += int((place[rows].to(tensor.dtype) != values).sum())
    return rounded


def _chunks(length: int, width: int, chunk_bytes: int) -> Iterator[slice]:
    """Ranges that cover ``length`` rows of ``width`` bytes, each of at most ``chunk_bytes`` or one row."""
    step = max(chunk_bytes // max(width, 1), 1)
    for first in range(0, length, step):
        yield slice(first, min(first + step, length))


def _stored_as(weights: str, layers: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> str:
    """A format for people: what is kept "in fp32" may lie in the arena in narrower types."""
    if weights != "fp32":
        return weights
    dtypes = {str(place.dtype) for (_, each), places in layers.items() if each == "fp32" for place in places.values()}
    return " and ".join(sorted(dtype.removeprefix("torch.") for dtype in dtypes - {"torch.float32"}))
