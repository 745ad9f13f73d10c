"""Where the workers' weights lie: regions of the arena in the verifier's formats, or a private copy in the drafter's.

The arena holds every tensor that is not a linear layer in fp32 (norms, embeddings, biases; a tied ``lm_head`` too, as
the embedding that it is), and each linear layer as the parts of its format. Layers may differ in format
(``qspec.quant.method_plan``). A drafter whose format of a layer is the verifier's, or a plane of it, uses those very
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.interfaces import MemoryItem, Progress
from qspec.memory.arena import HostArena
from qspec.memory.layout import RegionSpec
from qspec.models.config import DecoderConfig
from qspec.models.converted import ConvertedModel
from qspec.models.layer_weights import LayerWeights
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.method_plan import MethodPlan
from qspec.quant.weight_formats import WEIGHT_FORMATS

WEIGHTS = "weights/"
"""Prefix of every weight in fp32; the rest of the name is the canonical one (``qspec.models.config``)."""
QUANTISED = "quantised/"
"""Prefix of every part of a linear layer in another format; then the format, the canonical name and the part."""


def part_region(weights: str, name: str, part: str) -> str:
    """Region of one part of a linear layer."""
    return f"{QUANTISED}{weights}/{name}.{part}" if part else WEIGHTS + name


def weight_specs(model: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], plan: MethodPlan) -> list[RegionSpec]:
    """All regions of the weights, each linear layer in the format that the verifier's ``plan`` has for it.

    ``shapes``: of the canonical fp32 tensors by name. ``InvalidInput`` naming a layer that cannot be cut into groups.
    """
    specs = [RegionSpec(WEIGHTS + name, torch.float32, shapes[name]) for name in kept_in_fp32(model, shapes, plan)]
    for name in quantised_layers(plan):
        weights, (inputs, outputs) = plan.weights(name), shapes[name]
        specs += [
            RegionSpec(part_region(weights, name, part), dtype, shape)
            for part, (dtype, shape) in CODECS[weights].shapes(outputs, inputs, name).items()
        ]
    return specs


def quantised_layers(plan: MethodPlan) -> list[str]:
    """Linear layers that are stored in another format than fp32."""
    return [name for name in plan.layers if plan.weights(name) != "fp32"]


def kept_in_fp32(model: DecoderConfig, names: Iterable[str], plan: MethodPlan) -> list[str]:
    """Canonical names of what the arena holds in fp32."""
    quantised = set(quantised_layers(plan))
    if model.tied_embeddings:
        quantised.discard("lm_head")  # the embedding, too: its look-up stays in fp32
    return [name for name in sorted(names) if name not in quantised]


def fill_weights(
    arena: HostArena, model: DecoderConfig, stored: LayerWeights, plan: MethodPlan, progress: Progress
) -> None:
    """Write the weights into their regions, and tell how many were rounded where the format has exceptions."""
    tensors = stored.tensors
    fp32, layers = kept_in_fp32(model, tensors, plan), quantised_layers(plan)
    total = len(fp32) + len(layers)
    for index, name in enumerate(fp32):
        arena.tensor(WEIGHTS + name).copy_(tensors[name])
        progress("loading weights", (index + 1) / total)
    rounded: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for index, name in enumerate(layers):
        weights = plan.weights(name)
        parts = stored.parts(name, weights)
        for part, tensor in parts.items():
            arena.tensor(part_region(weights, name, part)).copy_(tensor)
        if WEIGHT_FORMATS[weights].counts_rounding:
            weight = tensors[name].t()
            rounded[weights] += int((CODECS[weights].decode(parts) != weight).sum())
            counted[weights] += weight.numel()
        progress(f"quantising weights to {weights}", (len(fp32) + index + 1) / total)
    _tell_stored(stored, layers, plan, progress)
    for weights, count in counted.items():
        progress(f"{rounded[weights]} of {count} weights were rounded to fit {weights}", None)


def _tell_stored(stored: LayerWeights, layers: list[str], plan: MethodPlan, progress: Progress) -> None:
    """One line for each format in which layers came with the model."""
    for weights in dict.fromkeys(map(plan.weights, layers)):
        of_format = [name for name in layers if plan.weights(name) == weights]
        if told := stored.tell_stored(of_format, weights):
            progress(told, None)


def fp32_tensors(arena: HostArena) -> dict[str, Tensor]:
    """What the arena holds in fp32, by canonical name."""
    return {name.removeprefix(WEIGHTS): arena.tensor(name) for name in arena.names() if name.startswith(WEIGHTS)}


def shared_parts(arena: HostArena, layers: Iterable[str], plan: MethodPlan, store: MethodPlan) -> dict[str, Parts]:
    """Linear ``layers`` in the formats of ``plan`` by name, in place in an arena that was laid out for ``store``.

    ``InvalidInput`` when the arena has no such regions: the workers were given different methods.
    """
    parts: dict[str, Parts] = {}
    for name in layers:
        assert plan.held_by(store, name)
        held = store.weights(name)
        try:
            parts[name] = {
                part: arena.tensor(part_region(held, name, part))
                for part in CODECS[plan.weights(name)].part_names
            }
        except KeyError as error:
            raise InvalidInput.field(
                "verify_quantization",
                f"the arena does not hold weights as {held} ({name}); give both workers the same methods and overrides",
            ) from error
    return parts


def private_parts(model: ConvertedModel, layers: list[str], plan: MethodPlan, progress: Progress) -> dict[str, Parts]:
    """Linear ``layers`` in the formats of ``plan``, a copy of one's own; fp32 is mapped from the model's file."""
    parts: dict[str, Parts] = {}
    with LayerWeights(model) as stored:
        for index, name in enumerate(layers):
            weights = plan.weights(name)
            parts[name] = stored.parts(name, weights)
            progress(f"making the drafter's own {weights} weights", (index + 1) / len(layers))
        _tell_stored(stored, layers, plan, progress)
    return parts


def parts_bytes(parts: Mapping[str, Parts]) -> int:
    """Size of stored weights."""
    return sum(tensor.numel() * tensor.dtype.itemsize for stored in parts.values() for tensor in stored.values())


def weight_memory(specs: list[RegionSpec], model: DecoderConfig, plan: MethodPlan) -> list[MemoryItem]:
    """The weights' part of the memory budget: an item for each format, and what always is in fp32.

    Where all is in fp32 that is one item; a tied ``lm_head`` counts as the embedding that it is.
    """
    fp32 = sum(spec.bytes for spec in specs if spec.name.startswith(WEIGHTS))
    if plan.formats == ("fp32",):
        return [MemoryItem(name="weights fp32", bytes=fp32, shared=True)]
    embeddings = {"lm_head"} if model.tied_embeddings else set()
    linear = {WEIGHTS + name for name in plan.layers if name not in embeddings}
    items = []
    for weights in plan.formats:
        size = sum(
            spec.bytes for spec in specs
            if (spec.name in linear if weights == "fp32" else spec.name.startswith(f"{QUANTISED}{weights}/"))
        )
        if size:
            items.append(MemoryItem(name=f"weights {weights}", bytes=size, shared=True))
            fp32 -= size if weights == "fp32" else 0
    return [*items, MemoryItem(name="embeddings, norms, biases fp32", bytes=fp32, shared=True)]
