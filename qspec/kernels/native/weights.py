"""Stored weights as the native kernels take them: the parts of ``qspec.quant.codecs``, row-major, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.errors import ContractViolation, InvalidInput
from qspec.kernels.native.loading import load
from qspec.kernels.reference import BITSANDBYTES_FP4_VALUES, NF4_VALUES
from qspec.quant import int4, int8
from qspec.quant.codecs import CODECS, PartShapes

if TYPE_CHECKING:
    from qspec.kernels.native import _native

_LARGEST_INTEGER_SUM = 2**31 // 127**2
"""Inputs that int8 × int8 may have before a sum could leave 32 bits."""


class _Format(IntEnum):
    """``qspec::Format`` in matrix.h."""

    FP32 = 0
    FP16_PLANES = 1
    E4M3_PLANE = 2
    E4M3_ROW = 3
    INT8_ROW = 4
    INT8_GROUPS = 5
    INT8_NIBBLES = 6
    NIBBLE_TABLE = 7
    NIBBLE_ZEROS = 8
    NIBBLE_MINIMA = 9
    NIBBLE_SWAPPED = 10


_ACTIVATIONS = {"fp32": 0, "int8 per token": 1, "e4m3 per token": 2}
_UNSIGNED = tuple(float(code) for code in range(16))
_SIGNED = tuple(float(code - 16 * (code > 7)) for code in range(16))  # two's complement
_HIGH = tuple(16 * value for value in _SIGNED)  # of an int8 code


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a stored format is read."""

    format: _Format
    table: tuple[float, ...] = ()
    """Value of each 4-bit code."""
    scale_factor: float = 1.0
    """Multiplies the scale of a row."""
    integer: bool = False
    """Whether there is a kernel for int8 activations."""
    group_size: int = 0
    """Inputs that share a scale; 0: all of a row."""


READINGS: Mapping[str, _Reading] = {
    "fp32": _Reading(_Format.FP32),
    "fp16-planes": _Reading(_Format.FP16_PLANES),
    "e4m3-plane": _Reading(_Format.E4M3_PLANE),
    "e4m3-row": _Reading(_Format.E4M3_ROW, scale_factor=256.0),  # the kernel reads e4m3 as the top of an fp16 number
    "int8-row": _Reading(_Format.INT8_ROW, integer=True),
    **{f"int8-g{size}": _Reading(_Format.INT8_GROUPS, integer=True, group_size=size) for size in int8.GROUP_SIZES},
    "int8-nibbles-g64": _Reading(_Format.INT8_NIBBLES, group_size=64),
    "int4-plane-g64": _Reading(_Format.NIBBLE_TABLE, _HIGH, integer=True, group_size=64),
    **{
        f"int4-g{size}": _Reading(_Format.NIBBLE_TABLE, _SIGNED, integer=True, group_size=size)
        for size in int4.GROUP_SIZES
    },
    **{
        f"int4-g{size}-asymmetric": _Reading(_Format.NIBBLE_ZEROS, _UNSIGNED, integer=True, group_size=size)
        for size in int4.GROUP_SIZES
    },
    **{
        f"int4-g{size}-minimum": _Reading(_Format.NIBBLE_MINIMA, _UNSIGNED, integer=True, group_size=size)
        for size in int4.MINIMUM_GROUP_SIZES
    },
    # bitsandbytes' own order: the even-numbered code in the high nibble
    "nf4-g64": _Reading(_Format.NIBBLE_SWAPPED, NF4_VALUES, group_size=64),
    "bnb-fp4-g64": _Reading(_Format.NIBBLE_SWAPPED, BITSANDBYTES_FP4_VALUES, group_size=64),
}
"""Stored formats that have kernels."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One linear layer: its stored weight, how its activations are quantised, its bias."""

    format: str
    """Of ``qspec.quant.weight_formats``."""
    parts: Mapping[str, Tensor]
    """As ``qspec.quant.codecs`` makes them, contiguous; the fp32 weight ``[out, in]`` under the empty name."""
    activations: str = "fp32"
    """``fp32``, ``int8 per token`` or ``e4m3 per token``."""
    bias: Tensor | None = None
    """``[out]`` fp32."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What must stay alive."""
        return (*self.parts.values(), *([] if self.bias is None else [self.bias]))


def supports(weight_format: str, activations: str) -> bool:
    """Whether there is a kernel for weights and activations of these formats."""
    reading = READINGS.get(weight_format)
    return reading is not None and activations in _ACTIVATIONS and (activations != "int8 per token" or reading.integer)


def native_matrix(weights: LayerWeights, name: str, shape: tuple[int, int] | None = None) -> _native.Matrix:
    """The weight for the kernels, which read the parts where they are: keep ``weights`` alive.

    ``shape``: the ``(out, in)`` that the layer must have. ``InvalidInput`` naming ``name`` when there is no kernel,
    ``ContractViolation`` when a part is missing or has another type, shape or layout than the codec's.
    """
    if not supports(weights.format, weights.activations):
        raise InvalidInput.field(
            name, f"has no native kernel for {weights.format} weights with {weights.activations} activations"
        )
    reading = READINGS[weights.format]
    outputs, inputs = _checked_shape(weights, name, shape)
    if weights.activations == "int8 per token" and inputs > _LARGEST_INTEGER_SUM:
        raise InvalidInput.field(name, f"has {inputs} inputs, more than int8 sums hold ({_LARGEST_INTEGER_SUM})")
    if weights.bias is not None:
        _check(weights.bias, torch.float32, (outputs,), f"{name}.bias")

    def address(*names: str) -> int:
        return next((weights.parts[part].data_ptr() for part in names if part in weights.parts), 0)

    load()
    from qspec.kernels.native import _native

    return _native.matrix(
        format=reading.format,
        activations=_ACTIVATIONS[weights.activations],
        outputs=outputs,
        inputs=inputs,
        group=reading.group_size or inputs,
        scale_factor=reading.scale_factor,
        codes=address("", "high", "codes"),
        low=address("low"),
        scales=address("scales"),
        zeros=address("zeros"),
        minima=address("minima"),
        bias=0 if weights.bias is None else weights.bias.data_ptr(),
        table=reading.table,
    )


def weight_shape(weights: LayerWeights) -> tuple[int, int]:
    """``(out, in)`` of a stored weight."""
    part = next(weights.parts[name] for name in ("", "high", "codes") if name in weights.parts)
    packed = part.dtype is torch.uint8  # nibbles, two in a byte
    return part.shape[0], part.shape[1] * (2 if packed else 1)


def _checked_shape(weights: LayerWeights, name: str, shape: tuple[int, int] | None) -> tuple[int, int]:
    outputs, inputs = shape or weight_shape(weights)
    if weights.format == "fp32":
        expected: PartShapes = {"": (torch.float32, (outputs, inputs))}
    else:
        expected = CODECS[weights.format].shapes(outputs, inputs, name)
    for part, (dtype, part_shape) in expected.items():
        if part not in weights.parts:
            raise ContractViolation(f"{name} lacks the part {part!r} of {weights.format}")
        _check(weights.parts[part], dtype, part_shape, f"{name}.{part}" if part else name)
    return outputs, inputs


def _check(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    if tensor.dtype is not dtype or tuple(tensor.shape) != shape:
        raise ContractViolation(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ContractViolation(f"{name} is not contiguous in the CPU's memory")
