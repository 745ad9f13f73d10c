"""The arena of a verifier, filled: on a CPU weights are mapped files beside it, on a GPU they are streamed into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from qspec.config import StackConfig
from qspec.engine.gpu_turn import gpu_context
from qspec.engine.linears import working_memory
from qspec.engine.regions import (
    DRAFT_PROBS,
    KV_KEYS,
    KV_VALUES,
    TAIL_KEYS,
    TAIL_VALUES,
    arena_fingerprint,
    arena_memory,
    arena_specs,
)
from qspec.engine.weight_files import open_weights
from qspec.engine.weights import WeightRegion, weight_memory, weight_regions
from qspec.interfaces import MemoryItem, Progress
from qspec.memory.arena import HostArena
from qspec.memory.attachment import Arena
from qspec.memory.budget import budget_lines, require_memory
from qspec.memory.layout import ArenaLayout, RegionSpec
from qspec.models.converted import ConvertedModel
from qspec.models.layer_weights import LayerWeights
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend, Role

_ON_GPU = (KV_KEYS, KV_VALUES, TAIL_KEYS, TAIL_VALUES, DRAFT_PROBS)
"""Regions that kernels read and write; the others are the host's to read (``qspec.memory.device_arena``)."""


@dataclass(frozen=True, slots=True)
class Store:
    """An arena with weights, and what it takes."""

    arena: Arena
    memory: tuple[MemoryItem, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the canonical fp32 tensors."""


def open_store(
    model: ConvertedModel, config: StackConfig, plan: MethodPlan, max_model_len: int, epoch: int, progress: Progress
) -> Store:
    """Make the arena that a ``plan`` needs. ``InvalidInput``, ``OutOfMemory`` with the budget's table."""
    with model.open_layers() as weights:
        shapes = {name: weights.tensors.shape(name) for name in weights.tensors}
        placed = weight_regions(model.config, shapes, plan)
        if plan.backend is Backend.CUDA:
            return _on_gpu(model, config, plan, max_model_len, epoch, progress, weights, shapes, placed)
        specs = arena_specs(model.config, config, max_model_len)
        memory = (
            *weight_memory([region.spec for region in placed], model.config, plan), *arena_memory(specs),
            *working_memory(plan, shapes, plan.layers),
        )
        require_memory(budget_lines("verifier", memory))
        mapped = open_weights(placed, model.fingerprint, weights, progress)
        fingerprint = arena_fingerprint(model.fingerprint, (*mapped.regions, *ArenaLayout.place(specs).regions))
        return Store(HostArena.create(specs, epoch=epoch, fingerprint=fingerprint, weights=mapped), memory, shapes)


def _on_gpu(
    model: ConvertedModel, config: StackConfig, plan: MethodPlan, max_model_len: int, epoch: int, progress: Progress,
    weights: LayerWeights, shapes: Mapping[str, tuple[int, ...]], placed: list[WeightRegion],
) -> Store:
    from qspec.engine.device_weights import stream_weights
    from qspec.engine.gpu_reserve import reserved_lines
    from qspec.engine.gpu_support import check_biases, check_formats
    from qspec.memory.device_arena import DeviceArena

    check_formats(plan, Role.VERIFY)
    check_biases(shapes)
    context = gpu_context()
    specs = arena_specs(model.config, config, max_model_len, torch.float16)
    on_gpu = [region.spec for region in placed] + [spec for spec in specs if spec.name in _ON_GPU]
    on_host: list[RegionSpec] = [spec for spec in specs if spec.name not in _ON_GPU]
    files = weight_memory([region.spec for region in placed], model.config, plan)
    items = [replace(item, mapped_file=False) for item in files]
    held = (*items, *arena_memory([spec for spec in specs if spec.name in _ON_GPU]))
    reserved = reserved_lines(model.config, config, plan, shapes, max_model_len, model.stored, context)
    arena = DeviceArena.create(
        on_gpu, on_host, epoch=epoch, budget=[*budget_lines("verifier", held), *reserved],
        fingerprint_of=lambda regions: arena_fingerprint(model.fingerprint, regions))
    stream_weights(arena, placed, weights, progress)
    state = MemoryItem(name="batch state (host memory)", bytes=sum(spec.bytes for spec in on_host), shared=True)
    return Store(arena, (*held, context, state), shapes)
