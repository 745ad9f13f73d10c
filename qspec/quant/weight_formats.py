"""The formats that weights are stored in, as data (no torch here). ``qspec.quant.codecs`` encodes and decodes them.

A format that is a *plane* of another one is a part of its tensors: a drafter of that format reads the store of a
verifier of the other in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How the weights of a linear layer are stored."""

    name: str
    bits_per_weight: float
    """Bits read per weight, scales of groups included (those of whole rows are not worth counting)."""
    group_size: int | None = None
    """Inputs that share a scale; None: a whole row, or no scale."""
    plane_of: str | None = None
    """The format whose store holds this one's tensors as a part."""
    counts_rounding: bool = False
    """Whether weights that it does not hold exactly are exceptions, to be counted and told."""
    package: str | None = None
    """Package that encodes and decodes it, where that is not done here; without it the format is not there."""

    @property
    def is_there(self) -> bool:
        """Whether its package is installed, which is found out without importing it."""
        return self.package is None or find_spec(self.package) is not None


def _with_scales(
    name: str, bits: int, group_size: int, scale_bits: int, plane_of: str | None = None, package: str | None = None
) -> WeightFormat:
    bits_per_weight = bits + scale_bits / group_size
    return WeightFormat(
        name=name, bits_per_weight=bits_per_weight, group_size=group_size, plane_of=plane_of, package=package)


WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    weights.name: weights
    for weights in (
        WeightFormat(name="fp32", bits_per_weight=32),
        WeightFormat(name="fp16-planes", bits_per_weight=16, counts_rounding=True),
        WeightFormat(name="e4m3-plane", bits_per_weight=8, plane_of="fp16-planes"),
        WeightFormat(name="e4m3-row", bits_per_weight=8),
        WeightFormat(name="int8-row", bits_per_weight=8),
        *(_with_scales(f"int8-g{group}", 8, group, 32) for group in (64, 32, 128)),
        _with_scales("int8-nibbles-g64", 8, 64, 32),
        _with_scales("int4-plane-g64", 4, 64, 32, plane_of="int8-nibbles-g64"),
        *(_with_scales(f"int4-g{group}", 4, group, 32) for group in (32, 64, 128)),
        *(_with_scales(f"int4-g{group}-asymmetric", 4, group, 32 + 8) for group in (32, 64, 128)),
        _with_scales("int4-g32-minimum", 4, 32, 32 + 32),
        *(_with_scales(name, 4, 64, 32, package="bitsandbytes") for name in ("nf4-g64", "bnb-fp4-g64")),
        _with_scales("nvfp4", 4, 16, 8),
        _with_scales("mxfp4", 4, 32, 8),
    )
}
"""All weight formats by name."""


def is_held_by(name: str, store: str) -> bool:
    """Whether a store of format ``store`` holds weights of format ``name``: the same, or a plane of it."""
    return name == store or WEIGHT_FORMATS[name].plane_of == store
