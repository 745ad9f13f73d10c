"""What a stack takes of a GPU beside its arena, said before anything is allocated, so that it can be refused in time.

A drafter loads when a verifier serves, and lets go of everything but its context when it detaches
(``qspec.engine.drafter``). So whenever a verifier asks, the drafter's share is still to come, and has to fit, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from qspec.config import StackConfig
from qspec.engine.cuda_buffers import buffer_bytes
from qspec.engine.weights import layer_regions
from qspec.engine.worker_forward import drafter_limits, verifier_limits
from qspec.interfaces import MemoryItem
from qspec.memory.budget import BudgetLine, budget_lines
from qspec.models.config import DecoderConfig
from qspec.quant.method_plan import MethodPlan, plan_draft
from qspec.quant.methods import NO_DRAFTER

GRAPH_BYTES = 256 << 20
"""Estimated for kernels, graphs and their workspaces of one worker; what they really took is measured later."""


def reserved_lines(
    model: DecoderConfig, config: StackConfig, plan: MethodPlan, shapes: Mapping[str, tuple[int, ...]],
    max_model_len: int, stored: Mapping[str, str], context: MemoryItem,
) -> list[BudgetLine]:
    """Both workers' buffers and graphs, the drafter's own weights and its context, which is taken to be as large as the
    verifier's ``context``. ``plan``: the verifier's; ``shapes``: of the canonical tensors.
    """
    linears = {name: (shapes[name][0], shapes[name][1]) for name in plan.layers}
    graphs = MemoryItem(name="kernels and CUDA graphs, estimated", bytes=GRAPH_BYTES, shared=False)
    buffers = buffer_bytes(model, verifier_limits(model, config, max_model_len), linears)
    lines = budget_lines("verifier", [_buffers(buffers), graphs])
    if config.draft_quantization == NO_DRAFTER:
        return lines
    methods = plan_draft(config, plan.backend, verify=plan, stored=stored)
    own = [name for name in methods.layers if not methods.held_by(plan, name)]
    sizes = Counter[str]()
    for region in layer_regions(own, shapes, methods):
        sizes[region.weights] += region.spec.bytes
    limits = drafter_limits(model, config.max_slots, config.max_draft_length, config.block_size, max_model_len)
    return lines + budget_lines("drafter", [
        *(MemoryItem(name=f"weights {weights}", bytes=size, shared=False) for weights, size in sizes.items()),
        _buffers(buffer_bytes(model, limits, linears)), context, graphs,
    ])


def _buffers(size: int) -> MemoryItem:
    return MemoryItem(name="buffers of passes", bytes=size, shared=False)
