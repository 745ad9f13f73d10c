"""A linear weight that a checkpoint keeps as integers in groups, whatever its packing, and the format of ours for it.

Readers of packings (``qspec.models.packed_checkpoint``, ``qspec.models.gguf_blocks``) unpack to one code per element;
here several of them become one layer (queries, keys and values; gate and up) in the parts of a format. Nothing is
rounded: a format fits when it holds the very numbers, and its groups may be finer than the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from qspec.quant.groups import scale_groups
from qspec.quant.nibbles import pack_nibbles, pack_signed
from qspec.quant.weight_formats import WEIGHT_FORMATS

_SIZES = (128, 64, 32)
"""Group sizes of our formats, the largest first."""


class Offset(Enum):
    """What is between a code times its scale and the weight; the value is the ending of our formats' names."""

    NONE = ""
    ZERO_POINT = "-asymmetric"
    MINIMUM = "-minimum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a checkpoint quantises a weight."""

    description: str
    """For people."""
    bits: int = 0
    group_size: int | None = None
    """Adjacent inputs that share a scale; None when the weight is no integers in groups of adjacent inputs."""
    offset: Offset = Offset.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """Codes of a weight, one per element."""

    codes: Tensor
    """``[out, in]`` int8, less their zero points where ``offsets`` is None; else uint8."""
    scales: Tensor
    """``[out, groups]`` fp32."""
    offsets: Tensor | None = None
    """``[out, groups]``: uint8 zero points, or fp32 minima."""

    def decode(self) -> Tensor:
        """The weight ``[out, in]`` that the codes stand for, fp32, to the bit as our formats decode it."""
        codes = self.codes.float()
        if self.offsets is None:
            return scale_groups(codes, self.scales)
        offsets = self.offsets.float().repeat_interleave(codes.shape[-1] // self.offsets.shape[-1], dim=-1)
        if self.offsets.dtype is torch.uint8:
            return scale_groups(codes - offsets, self.scales)
        return scale_groups(codes, self.scales) + offsets


def format_of(packings: Sequence[Packing | None], inputs: int) -> str | None:
    """The format that holds weights of these packings, joined along their outputs, or None."""
    known = [packing for packing in packings if packing is not None and packing.group_size is not None]
    if not known or len(known) < len(packings) or len({(packing.bits, packing.group_size) for packing in known}) > 1:
        return None
    offsets = {packing.offset for packing in known}
    if Offset.MINIMUM in offsets and len(offsets) > 1:
        return None
    offset = next(kind for kind in (Offset.MINIMUM, Offset.ZERO_POINT, Offset.NONE) if kind in offsets)
    bits, size = known[0].bits, known[0].group_size
    sizes = [f"g{ours}" for ours in _SIZES if size is not None and size % ours == 0]
    if size == inputs and size not in _SIZES:
        sizes.insert(0, "row")
    names = [f"int{bits}-{ending}{offset.value}" for ending in sizes]
    return next((name for name in names if name in WEIGHT_FORMATS), None)


def to_parts(weights: Sequence[PackedWeight], weights_format: str) -> dict[str, Tensor]:
    """The parts of ``weights_format`` (one that ``format_of`` named) of weights joined along their outputs."""
    inputs = weights[0].codes.shape[-1]
    groups = inputs // (WEIGHT_FORMATS[weights_format].group_size or inputs)
    scales = torch.cat([_repeated(weight.scales, groups) for weight in weights])
    if weights_format.startswith("int8"):
        return {"codes": torch.cat([weight.codes for weight in weights]), "scales": scales}
    if weights_format.endswith(Offset.MINIMUM.value):
        minima = torch.cat([_repeated(_offsets(weight), groups) for weight in weights])
        return {"codes": pack_nibbles(torch.cat([weight.codes for weight in weights])), "scales": scales,
                "minima": minima}
    if weights_format.endswith(Offset.ZERO_POINT.value):
        pairs = [_with_zeros(weight) for weight in weights]
        zeros = torch.cat([_repeated(zeros, groups) for _, zeros in pairs])
        return {"codes": pack_nibbles(torch.cat([codes for codes, _ in pairs])), "scales": scales, "zeros": zeros}
    return {"codes": pack_signed(torch.cat([weight.codes for weight in weights])), "scales": scales}


def _with_zeros(weight: PackedWeight) -> tuple[Tensor, Tensor]:
    """4-bit codes 0..15 and zero points, of symmetric codes, too."""
    if weight.offsets is not None:
        return weight.codes, weight.offsets
    middle = 8
    return (weight.codes + middle).to(torch.uint8), torch.full_like(weight.scales, middle, dtype=torch.uint8)


def _offsets(weight: PackedWeight) -> Tensor:
    assert weight.offsets is not None
    return weight.offsets


def _repeated(values: Tensor, groups: int) -> Tensor:
    """``[out, fewer groups]`` for finer groups."""
    return values.repeat_interleave(groups // values.shape[-1], dim=-1)
