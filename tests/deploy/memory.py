"""What the containers of an overlay need of the host's memory, computed from their options for the default model."""

from __future__ import annotations

import functools
from contextlib import closing
from dataclasses import dataclass

from qspec.config import StackConfig
from qspec.engine.regions import arena_memory, arena_specs
from qspec.engine.weights import weight_memory, weight_regions
from qspec.models.config import DecoderConfig
from qspec.models.decoder import linear_names
from qspec.models.gguf_file import GgufFile
from qspec.models.hf_config import decoder_config, features
from qspec.models.resolve import resolve
from qspec.models.tensor_rules import plan
from qspec.quant.method_plan import plan_draft, plan_verify
from qspec.quant.methods import Backend

PROCESS = 0.3 * 2**30
"""Bytes of a worker's process without its arena and weights (README.md, "Measured": 1077 MiB for the whole stack)."""
GPU_PROCESS = 1.5 * 2**30
"""The same with a CUDA context and its libraries; an allowance, not a measurement."""
COORDINATOR = 192 * 2**20


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes by program; ``conversion``: on top, while the first start converts the model."""

    verifier: float
    drafter: float
    coordinator: float
    conversion: float


@functools.lru_cache
def _model() -> tuple[DecoderConfig, dict[str, tuple[int, ...]]]:
    """The default model, and the shapes of its canonical tensors."""
    with closing(GgufFile(resolve("smollm2").path)) as file:
        config = decoder_config(file.spec, file.config)
        plans = plan(file.spec.rules, config, features(file.spec, file.config))
        return config, {each.target: each.shape for each in plans}


def host_memory(config: StackConfig, backend: Backend) -> HostMemory:
    """What a stack with this configuration needs of the host."""
    model, shapes = _model()
    fp32 = sum(4 * functools.reduce(int.__mul__, shape) for shape in shapes.values())
    specs = arena_specs(model, config, model.max_position)
    if backend is Backend.CUDA:  # weights and KV blocks are on the GPU; what the host decides by is here
        state = sum(spec.bytes for spec in specs if spec.name.startswith("state/"))
        return HostMemory(GPU_PROCESS + state, GPU_PROCESS, COORDINATOR, 2 * fp32)
    verify = plan_verify(config, linear_names(model), backend)
    draft = plan_draft(config, backend, verify=verify)
    shared = weight_memory([region.spec for region in weight_regions(model, shapes, verify)], model, verify)
    own = [
        item for item in weight_memory([region.spec for region in weight_regions(model, shapes, draft)], model, draft)
        if item.name.removeprefix("weights ") in set(draft.formats) - set(verify.formats)]
    arena = sum(item.bytes for item in (*shared, *arena_memory(specs)))
    return HostMemory(PROCESS + arena, PROCESS + sum(item.bytes for item in own), COORDINATOR, 2 * fp32)
