"""The two ways from what calibration texts show of a layer's inputs to codes: GPTQ, and AWQ's scaling before rounding.

AWQ also changes what makes the inputs: a norm's weight (and bias), or the rows of the layer before, are divided by the
scales. Where nothing can be divided, the inputs stay as they are: those of ``attention_out`` (its value heads are
shared between query heads), of ``mlp_out`` behind an ungated MLP, and of an ``lm_head`` that is the embedding, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.calibration.config import Algorithm
from qspec.calibration.layer_walk import Half, InputStatistics, LayerWalk
from qspec.models.config import DecoderConfig
from qspec.models.packed_weight import PackedWeight
from qspec.quant.awq import input_scales
from qspec.quant.gptq import Codes, gptq
from qspec.quant.integer_grid import IntegerGrid

_NORMS = {"qkv": "attention_norm", "mlp_in": "mlp_norm", "lm_head": "final_norm"}
"""Which norm makes the inputs of which linear layer."""


def quantise_half(
    algorithm: Algorithm, walk: LayerWalk, half: Half, grid: IntegerGrid
) -> dict[str, PackedWeight]:
    """The codes of the linear layers of ``half``, by name; the walk goes on with what they stand for.

    Under AWQ, ``scale_half`` comes first.
    """
    packed = {}
    for name in half.names:
        statistics = half.observe(name)[name]
        weight = walk.linears[name].weight.t().contiguous()  # [out, in]
        if algorithm is Algorithm.GPTQ:
            codes = gptq(weight, statistics.products, name, grid)
        else:
            codes = _round(weight, statistics.products.diagonal().float(), grid)
        packed[name] = _packed(codes, grid)
        walk.linears[name].weight = packed[name].decode().t()
    return packed


def scale_half(walk: LayerWalk, half: Half, config: DecoderConfig, grid: IntegerGrid) -> dict[str, Tensor]:
    """AWQ's scaling of the linear layers of ``half``: the canonical tensors that changed, by name.

    The half computes what it did before, but for rounding in fp32.
    """
    found = half.observe(*half.names)
    prefix = half.names[0].rpartition(".")[0]
    changed: dict[str, Tensor] = {}
    if f"{prefix}.mlp_out" in half.names and config.gated_mlp:
        scales = _scales(walk, f"{prefix}.mlp_out", found, grid)
        changed |= _scale_inputs(walk, f"{prefix}.mlp_out", scales)
        changed |= _divide_up_projection(walk, f"{prefix}.mlp_in", scales)
    for name in half.names:
        norm = _NORMS.get(name.rpartition(".")[2])
        if norm is None or (name == "lm_head" and config.tied_embeddings):
            continue
        scales = _scales(walk, name, found, grid)
        changed |= _scale_inputs(walk, name, scales)
        tensor = f"{prefix}.{norm}" if prefix else norm
        changed |= {each: walk.small[each].div_(scales) for each in (tensor, f"{tensor}.bias") if each in walk.small}
    return changed


def _scales(walk: LayerWalk, name: str, found: dict[str, InputStatistics], grid: IntegerGrid) -> Tensor:
    statistics = found[name]

    def rounded(weight: Tensor) -> Tensor:
        groups = weight.view(weight.shape[0], -1, grid.group_size)
        covered = grid.cover(groups)
        return grid.values(grid.round(groups, covered), covered).view_as(weight)

    weight = walk.linears[name].weight.t().contiguous()
    return input_scales(weight, statistics.products, statistics.mean_magnitudes, rounded)


def _scale_inputs(walk: LayerWalk, name: str, scales: Tensor) -> dict[str, Tensor]:
    linear = walk.linears[name]
    linear.weight = linear.weight * scales.unsqueeze(1)  # [in, out]
    return {name: linear.weight}


def _divide_up_projection(walk: LayerWalk, name: str, scales: Tensor) -> dict[str, Tensor]:
    """Divide the second half of the outputs of ``mlp_in``, which are multiplied with the activated gates."""
    linear, size = walk.linears[name], len(scales)
    divisors = torch.cat([torch.ones(size), scales])
    linear.weight = linear.weight / divisors
    changed = {name: linear.weight}
    if linear.bias is not None:
        changed[f"{name}.bias"] = linear.bias.div_(divisors)
    return changed


def _round(weight: Tensor, importance: Tensor, grid: IntegerGrid) -> Codes:
    """The nearest codes on grids that are clipped where it helps; ``importance`` of the inputs: ``[in]``."""
    groups = weight.view(weight.shape[0], -1, grid.group_size)
    fitted = grid.fit(groups, importance.view(1, -1, grid.group_size))
    return Codes(grid.round(groups, fitted).flatten(-2).to(torch.int8), fitted.scales, fitted.zeros.to(torch.uint8))


def _packed(codes: Codes, grid: IntegerGrid) -> PackedWeight:
    if grid.symmetric:
        return PackedWeight(codes=codes.codes, scales=codes.scales)
    return PackedWeight(codes=codes.codes.to(torch.uint8), scales=codes.scales, offsets=codes.zeros)
