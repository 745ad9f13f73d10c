"""Where the workers' weights lie: regions of the arena in the verifier's format, or a private copy in the drafter's.

The arena holds every tensor that is not a linear layer in fp32 (norms, embeddings, biases; a tied ``lm_head`` too, as
the embedding that it is), and each linear layer as the parts of its format. A drafter whose format is the verifier's,
or a plane of it, uses those very bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.interfaces import MemoryItem, Progress
from qspec.memory.arena import HostArena
from qspec.memory.layout import RegionSpec
from qspec.models.config import DecoderConfig
from qspec.models.converted import ConvertedModel
from qspec.models.decoder import linear_names
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.weight_formats import WEIGHT_FORMATS, is_held_by

WEIGHTS = "weights/"
"""Prefix of every weight in fp32; the rest of the name is the canonical one (``qspec.models.config``)."""
QUANTISED = "quantised/"
"""Prefix of every part of a linear layer in another format; then the format, the canonical name and the part."""


def part_region(weights: str, name: str, part: str) -> str:
    """Region of one part of a linear layer."""
    return f"{QUANTISED}{weights}/{name}.{part}" if part else WEIGHTS + name


def weight_specs(model: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], weights: str) -> list[RegionSpec]:
    """All regions of the weights, linear layers in format ``weights``.

    ``shapes``: of the canonical fp32 tensors by name. ``InvalidInput`` naming a layer that cannot be cut into groups.
    """
    specs = [RegionSpec(WEIGHTS + name, torch.float32, shapes[name]) for name in kept_in_fp32(model, shapes, weights)]
    for name in linear_names(model) if weights != "fp32" else []:
        inputs, outputs = shapes[name]
        specs += [
            RegionSpec(part_region(weights, name, part), dtype, shape)
            for part, (dtype, shape) in CODECS[weights].shapes(outputs, inputs, name).items()
        ]
    return specs


def kept_in_fp32(model: DecoderConfig, names: Mapping[str, object], weights: str) -> list[str]:
    """Canonical names of what the arena holds in fp32."""
    quantised = set() if weights == "fp32" else set(linear_names(model))
    if model.tied_embeddings:
        quantised.discard("lm_head")  # the embedding, too: its look-up stays in fp32
    return [name for name in sorted(names) if name not in quantised]


def fill_weights(
    arena: HostArena, model: DecoderConfig, stored: LayerWeights, weights: str, progress: Progress
) -> None:
    """Write the weights into their regions, and tell how many were rounded where the format has exceptions."""
    tensors = stored.tensors
    fp32 = kept_in_fp32(model, tensors, weights)
    layers = [] if weights == "fp32" else linear_names(model)
    total = len(fp32) + len(layers)
    for index, name in enumerate(fp32):
        arena.tensor(WEIGHTS + name).copy_(tensors[name])
        progress("loading weights", (index + 1) / total)
    codec, rounded, count = CODECS[weights], 0, 0
    for index, name in enumerate(layers):
        parts = stored.parts(name, weights)
        for part, tensor in parts.items():
            arena.tensor(part_region(weights, name, part)).copy_(tensor)
        if WEIGHT_FORMATS[weights].counts_rounding:
            weight = tensors[name].t()
            rounded += int((codec.decode(parts) != weight).sum())
            count += weight.numel()
        progress(f"quantising weights to {weights}", (len(fp32) + index + 1) / total)
    if told := stored.tell_stored(layers, weights):
        progress(told, None)
    if count:
        progress(f"{rounded} of {count} weights were rounded to fit {weights}", None)


def fp32_tensors(arena: HostArena) -> dict[str, Tensor]:
    """What the arena holds in fp32, by canonical name."""
    return {name.removeprefix(WEIGHTS): arena.tensor(name) for name in arena.names() if name.startswith(WEIGHTS)}


def shared_parts(arena: HostArena, model: DecoderConfig, weights: str, store: str) -> dict[str, Parts]:
    """The linear layers in format ``weights`` by name, in place in an arena whose format is ``store``.

    ``InvalidInput`` when the arena has no such regions: the workers were given different methods.
    """
    assert is_held_by(weights, store)
    part_names = CODECS[weights].shapes(_ANY_SIZE, _ANY_SIZE, "")
    try:
        return {
            name: {part: arena.tensor(part_region(store, name, part)) for part in part_names}
            for name in linear_names(model)
        }
    except KeyError as error:
        raise InvalidInput.field(
            "verify_quantization", f"the arena does not hold weights as {store}; give both workers the same method"
        ) from error


_ANY_SIZE = 1 << 12
"""A size that every group size divides, to ask a codec for the names of its parts."""


def private_parts(model: ConvertedModel, weights: str, progress: Progress) -> dict[str, Parts]:
    """The linear layers in format ``weights``, a copy of one's own; fp32 is mapped from the converted model's file."""
    names = linear_names(model.config)
    parts: dict[str, Parts] = {}
    with LayerWeights(model) as stored:
        for index, name in enumerate(names):
            parts[name] = stored.parts(name, weights)
            progress(f"making the drafter's own {weights} weights", (index + 1) / len(names))
        if told := stored.tell_stored(names, weights):
            progress(told, None)
    return parts


def parts_bytes(parts: Mapping[str, Parts]) -> int:
    """Size of stored weights."""
    return sum(tensor.numel() * tensor.dtype.itemsize for stored in parts.values() for tensor in stored.values())


def weight_memory(specs: list[RegionSpec], weights: str) -> list[MemoryItem]:
    """The weights' part of the memory budget."""
    fp32 = sum(spec.bytes for spec in specs if spec.name.startswith(WEIGHTS))
    if weights == "fp32":
        return [MemoryItem(name="weights fp32", bytes=fp32, shared=True)]
    quantised = sum(spec.bytes for spec in specs if spec.name.startswith(QUANTISED))
    return [
        MemoryItem(name=f"weights {weights}", bytes=quantised, shared=True),
        MemoryItem(name="embeddings, norms, biases fp32", bytes=fp32, shared=True),
    ]
