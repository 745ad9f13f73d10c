"""What the workers' weights are: regions of the arena in the verifier's formats, or the drafter's own.

The arena has every tensor that is not a linear layer in fp32 (norms, embeddings, biases; a tied ``lm_head`` too, as
the embedding that it is), and each linear layer as the parts of its format. Layers may differ in format
(``qspec.quant.method_plan``). For the native kernels and on a GPU a tied embedding lies row by row: in the parts of
``lm_head`` where those are precise enough, else by itself, in fp32 (on a GPU: fp16). A drafter whose format of a layer
is the verifier's, or a plane of it, uses those very bytes. On a CPU all of them lie in files that are mapped
(``qspec.engine.weight_files``), on a GPU in the arena (``qspec.engine.device_weights``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.interfaces import MemoryItem
from qspec.memory.attachment import Arena
from qspec.memory.layout import RegionSpec
from qspec.models.config import DecoderConfig
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend

WEIGHTS = "weights/"
"""Prefix of every weight in fp32; the rest of the name is the canonical one (``qspec.models.config``)."""
QUANTISED = "quantised/"
"""Prefix of every part of a linear layer in another format; then the format, the canonical name and the part."""

_EMBED = "embed"
_ROW_BY_ROW = (Backend.CPU_NATIVE, Backend.CUDA)
"""Backends that look an embedding up where each token's lies by itself."""
_PLANES = ("high", "low", "codes")
GPU_LINE = 128
"""Bytes that a GPU's memory is read in."""
_EMBEDDING_FORMATS = ("fp32-rows", "fp16-planes")
"""Formats of ``lm_head`` in which a tied embedding may be read, token by token, by the native kernels."""


@dataclass(frozen=True, slots=True)
class StoredEmbedding:
    """A store's token embedding: a weight ``[V, H]`` as the parts of a format."""

    format: str
    parts: Parts


def part_region(weights: str, name: str, part: str) -> str:
    """Region of one part of a linear layer."""
    return f"{QUANTISED}{weights}/{name}.{part}" if part else WEIGHTS + name


@dataclass(frozen=True, slots=True)
class WeightRegion:
    """One region, and what it holds."""

    spec: RegionSpec
    layer: str
    """Canonical name of the tensor."""
    weights: str
    """Its format."""
    part: str
    """Which part of the format; empty for fp32, which has but one."""


def weight_regions(model: DecoderConfig, shapes: Mapping[str, tuple[int, ...]], plan: MethodPlan) -> list[WeightRegion]:
    """All regions of the weights, each linear layer in the format that the verifier's ``plan`` has for it.

    ``shapes``: of the canonical fp32 tensors by name. ``InvalidInput`` naming a layer that cannot be cut into groups.
    """
    fp32 = [
        WeightRegion(RegionSpec(WEIGHTS + name, _dtype(name, plan), shapes[name]), name, "fp32", "")
        for name in kept_in_fp32(model, shapes, plan)
    ]
    if _has_own_rows(model, plan):
        rows = RegionSpec(WEIGHTS + _EMBED, _dtype(_EMBED, plan), shapes["lm_head"][::-1])
        fp32.append(WeightRegion(rows, "lm_head", "fp32-rows", "rows"))
    return fp32 + layer_regions(quantised_layers(plan), shapes, plan)


def _dtype(name: str, plan: MethodPlan) -> torch.dtype:
    """What a tensor that is no linear layer is kept in."""
    return torch.float16 if plan.backend is Backend.CUDA and name == _EMBED else torch.float32


def layer_regions(
    layers: Iterable[str], shapes: Mapping[str, tuple[int, ...]], plan: MethodPlan
) -> list[WeightRegion]:
    """The regions of linear ``layers`` in the formats of ``plan``. Raises as ``weight_regions``."""
    regions = []
    for name in layers:
        weights, (inputs, outputs) = plan.weights(name), shapes[name]
        regions += [
            WeightRegion(
                RegionSpec(part_region(weights, name, part), dtype, _padded(part, shape, plan)), name, weights, part)
            for part, (dtype, shape) in CODECS[weights].shapes(outputs, inputs, name).items()
        ]
    return regions


def _padded(part: str, shape: tuple[int, ...], plan: MethodPlan) -> tuple[int, ...]:
    """The shape of a part in the arena: on a GPU every row of a plane or of codes begins with a line of memory
    (``qspec.kernels.triton.plane_linear.row_stride``).
    """
    if plan.backend is not Backend.CUDA or part not in _PLANES:
        return shape
    return shape[0], -(-shape[1] // GPU_LINE) * GPU_LINE


def quantised_layers(plan: MethodPlan) -> list[str]:
    """Linear layers that are stored in another format than fp32."""
    return [name for name in plan.layers if plan.weights(name) != "fp32"]


def kept_in_fp32(model: DecoderConfig, names: Iterable[str], plan: MethodPlan) -> list[str]:
    """Canonical names of what the arena holds in fp32."""
    quantised = set(quantised_layers(plan))
    if model.tied_embeddings and plan.backend not in _ROW_BY_ROW:
        quantised.discard("lm_head")  # the embedding, too: its look-up stays in fp32
    return [name for name in sorted(names) if name not in quantised]


def _has_own_rows(model: DecoderConfig, plan: MethodPlan) -> bool:
    """Whether a tied embedding lies beside ``lm_head``, row by row."""
    own = plan.backend in _ROW_BY_ROW
    return own and model.tied_embeddings and plan.weights("lm_head") not in _EMBEDDING_FORMATS


def stored_embedding(arena: Arena, store: MethodPlan) -> StoredEmbedding:
    """The token embedding, in place, of an arena that was laid out for ``store``."""
    tensors = fp32_tensors(arena)
    if _EMBED in tensors:
        return StoredEmbedding("fp32-rows", {"rows": tensors[_EMBED]})
    if "lm_head" in tensors:
        return StoredEmbedding("fp32", {"": tensors["lm_head"]})
    return StoredEmbedding(store.weights("lm_head"), shared_parts(arena, ["lm_head"], store, store)["lm_head"])


def private_embedding_bytes(model: DecoderConfig, plan: MethodPlan, store: MethodPlan) -> int:
    """Bytes of the embedding that a drafter makes for itself, because the ``store`` has it in the other layout."""
    if not model.tied_embeddings or plan.backend is store.backend:
        return 0
    in_place = _has_own_rows(model, store) or store.weights("lm_head") == "fp32-rows"
    return 0 if in_place else 4 * model.vocab_size * model.hidden_size


def fp32_tensors(arena: Arena) -> dict[str, Tensor]:
    """What the arena holds in fp32, by canonical name."""
    return {name.removeprefix(WEIGHTS): arena.tensor(name) for name in arena.names() if name.startswith(WEIGHTS)}


class Regions(Protocol):
    """An arena, or files alone (``qspec.memory.mapped_file``)."""

    def tensor(self, name: str) -> Tensor:
        """The region ``name``; no copy. ``KeyError`` if there is none."""
        ...


def shared_parts(regions: Regions, layers: Iterable[str], plan: MethodPlan, store: MethodPlan) -> dict[str, Parts]:
    """Linear ``layers`` in the formats of ``plan`` by name, in place in regions that were laid out for ``store``.

    ``InvalidInput`` when the arena has no such regions: the workers were given different methods.
    """
    parts: dict[str, Parts] = {}
    for name in layers:
        assert plan.held_by(store, name)
        held = store.weights(name)
        try:
            parts[name] = {
                part: regions.tensor(part_region(held, name, part))
                for part in CODECS[plan.weights(name)].part_names
            }
        except KeyError as error:
            raise InvalidInput.field(
                "verify_quantization",
                f"the arena does not hold weights as {held} ({name}); give both workers the same methods, "
                "overrides and kernels",
            ) from error
    return parts


def parts_bytes(parts: Mapping[str, Parts]) -> int:
    """Size of stored weights."""
    return sum(tensor.numel() * tensor.dtype.itemsize for stored in parts.values() for tensor in stored.values())


def weight_memory(specs: Sequence[RegionSpec], model: DecoderConfig, plan: MethodPlan) -> list[MemoryItem]:
    """The weights' part of the memory budget: an item for each format, and what always is in fp32.

    Where all is in fp32 that is one item; a tied ``lm_head`` counts as the embedding that it is.
    """
    fp32 = sum(spec.bytes for spec in specs if spec.name.startswith(WEIGHTS))
    if plan.formats == ("fp32",):
        return [_mapped("weights fp32", fp32)]
    embeddings = {"lm_head"} if model.tied_embeddings else set()
    linear = {WEIGHTS + name for name in plan.layers if name not in embeddings}
    items = []
    for weights in plan.formats:
        size = sum(
            spec.bytes for spec in specs
            if (spec.name in linear if weights == "fp32" else spec.name.startswith(f"{QUANTISED}{weights}/"))
        )
        if size:
            items.append(_mapped(f"weights {weights}", size))
            fp32 -= size if weights == "fp32" else 0
    return [*items, _mapped("embeddings, norms, biases fp32", fp32)]


def _mapped(name: str, size: int) -> MemoryItem:
    return MemoryItem(name=name, bytes=size, shared=True, mapped_file=True)
