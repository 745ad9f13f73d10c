"""Weights of every stored format to and from tensors: what ``qspec.quant.weight_formats`` describes.

A stored weight is a few named *parts*. A codec says which (so that an arena can be laid out before anything is read),
makes them from an fp32 weight ``[out, in]``, and gives back the fp32 weight that they stand for. A plane's parts bear
the names that they have in the format that it is a plane of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.quant import bitsandbytes_4bit, e4m3, int4, int8
from qspec.quant.blocks_fp4 import (
    MXFP4_BLOCK,
    NVFP4_BLOCK,
    dequantize_mxfp4,
    dequantize_nvfp4,
    quantize_mxfp4,
    quantize_nvfp4,
)
from qspec.quant.groups import require_groups
from qspec.quant.nibbles import pack_nibbles, pack_signed, unpack_nibbles, unpack_signed
from qspec.quant.planes import (
    HIGH_SCALE,
    LARGEST_INT8,
    merge_fp16,
    merge_int8,
    scale_rows,
    split_fp16,
    split_int8,
)

Parts = Mapping[str, Tensor]
PartShapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]
_E4M3 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class Codec:
    """One stored format."""

    shapes: Callable[[int, int, str], PartShapes]
    """Parts of a weight with so many outputs and inputs; ``InvalidInput`` with its name when they cannot be grouped."""
    encode: Callable[[Tensor, str], dict[str, Tensor]]
    """Parts of an fp32 weight ``[out, in]``; ``InvalidInput`` with its name for NaN and infinity."""
    decode: Callable[[Parts], Tensor]
    """The fp32 weight ``[out, in]`` that parts stand for."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of the parts, whatever the weight's size."""
        any_size = 1 << 12  # one that every group size divides
        return tuple(self.shapes(any_size, any_size, ""))


def _grouped(codes: torch.dtype, per_code: int, extra: Mapping[str, torch.dtype], size: int | None) -> Callable[
    [int, int, str], PartShapes
]:
    """Shapes of codes, ``per_code`` of them in an element, and of what each group of ``size`` inputs has."""

    def shapes(outputs: int, inputs: int, name: str) -> PartShapes:
        groups = require_groups(inputs, size or inputs, name)
        return {
            "codes": (codes, (outputs, inputs // per_code)),
            **{part: (dtype, (outputs, groups)) for part, dtype in extra.items()},
        }

    return shapes


def _fp32() -> Codec:
    """The canonical tensor itself, ``[in, out]``; its one part has no name of its own."""
    return Codec(
        shapes=lambda outputs, inputs, _name: {"": (torch.float32, (inputs, outputs))},
        encode=lambda weight, _name: {"": weight.t()},
        decode=lambda parts: parts[""].t(),
    )


def _fp16_planes() -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        scaled = scale_rows(weight, name)
        high, low = split_fp16(scaled.rows, name)
        return {"high": high, "low": low, "scales": scaled.scales}

    return Codec(
        shapes=lambda outputs, inputs, _name: {
            "high": (_E4M3, (outputs, inputs)),
            "low": (torch.uint8, (outputs, inputs)),
            "scales": (torch.float32, (outputs, 1)),
        },
        encode=encode,
        decode=lambda parts: merge_fp16(parts["high"], parts["low"]).float().mul_(parts["scales"]),
    )


def _int8_nibbles(size: int) -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales = int8.quantize(weight, name, size, LARGEST_INT8)
        high, low = split_int8(codes, name)
        return {"high": pack_signed(high), "low": pack_signed(low), "scales": scales}

    def shapes(outputs: int, inputs: int, name: str) -> PartShapes:
        groups = require_groups(inputs, size, name)
        packed = (torch.uint8, (outputs, inputs // 2))
        return {"high": packed, "low": packed, "scales": (torch.float32, (outputs, groups))}

    def decode(parts: Parts) -> Tensor:
        return int8.dequantize(merge_int8(unpack_signed(parts["high"]), unpack_signed(parts["low"])), parts["scales"])

    return Codec(shapes=shapes, encode=encode, decode=decode)


def _plane(store: Codec, decode: Callable[[Parts], Tensor], *held: str) -> Codec:
    """The parts ``held`` of another format's store."""
    return Codec(
        shapes=lambda outputs, inputs, name: {
            part: shape for part, shape in store.shapes(outputs, inputs, name).items() if part in held
        },
        encode=lambda weight, name: {
            part: tensor for part, tensor in store.encode(weight, name).items() if part in held
        },
        decode=decode,
    )


def _int8(size: int | None) -> Codec:
    return Codec(
        shapes=_grouped(torch.int8, 1, {"scales": torch.float32}, size),
        encode=lambda weight, name: dict(zip(("codes", "scales"), int8.quantize(weight, name, size), strict=True)),
        decode=lambda parts: int8.dequantize(parts["codes"], parts["scales"]),
    )


def _int4(size: int) -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales = int4.quantize_symmetric(weight, name, size)
        return {"codes": pack_signed(codes), "scales": scales}

    return Codec(
        shapes=_grouped(torch.uint8, 2, {"scales": torch.float32}, size),
        encode=encode,
        decode=lambda parts: int4.dequantize_symmetric(unpack_signed(parts["codes"]), parts["scales"]),
    )


def _int4_asymmetric(size: int) -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales, zeros = int4.quantize_asymmetric(weight, name, size)
        return {"codes": pack_nibbles(codes), "scales": scales, "zeros": zeros}

    return Codec(
        shapes=_grouped(torch.uint8, 2, {"scales": torch.float32, "zeros": torch.uint8}, size),
        encode=encode,
        decode=lambda parts: int4.dequantize_asymmetric(
            unpack_nibbles(parts["codes"]), parts["scales"], parts["zeros"]
        ),
    )


def _int4_minimum(size: int) -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales, minima = int4.quantize_minimum(weight, name, size)
        return {"codes": pack_nibbles(codes), "scales": scales, "minima": minima}

    return Codec(
        shapes=_grouped(torch.uint8, 2, {"scales": torch.float32, "minima": torch.float32}, size),
        encode=encode,
        decode=lambda parts: int4.dequantize_minimum(unpack_nibbles(parts["codes"]), parts["scales"], parts["minima"]),
    )


def _bitsandbytes(kind: str) -> Codec:
    return Codec(
        shapes=_grouped(torch.uint8, 2, {"scales": torch.float32}, bitsandbytes_4bit.BLOCK),
        encode=lambda weight, name: dict(
            zip(("codes", "scales"), bitsandbytes_4bit.quantize(weight, name, kind), strict=True)
        ),
        decode=lambda parts: bitsandbytes_4bit.dequantize(parts["codes"], parts["scales"], kind),
    )


def _e4m3_row() -> Codec:
    return Codec(
        shapes=_grouped(_E4M3, 1, {"scales": torch.float32}, None),
        encode=lambda weight, name: dict(zip(("codes", "scales"), e4m3.quantize_rows(weight, name), strict=True)),
        decode=lambda parts: e4m3.dequantize_rows(parts["codes"], parts["scales"]),
    )


def _nvfp4() -> Codec:
    blocks = _grouped(torch.uint8, 2, {"scales": _E4M3}, NVFP4_BLOCK)

    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales, scale = quantize_nvfp4(weight, name)
        return {"codes": pack_nibbles(codes), "scales": scales, "scale": scale}

    return Codec(
        shapes=lambda outputs, inputs, name: {**blocks(outputs, inputs, name), "scale": (torch.float32, (1, 1))},
        encode=encode,
        decode=lambda parts: dequantize_nvfp4(unpack_nibbles(parts["codes"]), parts["scales"], parts["scale"]),
    )


def _mxfp4() -> Codec:
    def encode(weight: Tensor, name: str) -> dict[str, Tensor]:
        codes, scales = quantize_mxfp4(weight, name)
        return {"codes": pack_nibbles(codes), "scales": scales}

    return Codec(
        shapes=_grouped(torch.uint8, 2, {"scales": torch.uint8}, MXFP4_BLOCK),
        encode=encode,
        decode=lambda parts: dequantize_mxfp4(unpack_nibbles(parts["codes"]), parts["scales"]),
    )


def _decode_high_fp16(parts: Parts) -> Tensor:
    return e4m3.decode(parts["high"]).mul_(parts["scales"] * HIGH_SCALE)


def _decode_high_int8(parts: Parts) -> Tensor:
    return int8.dequantize(unpack_signed(parts["high"]), parts["scales"] * 16)


CODECS: Mapping[str, Codec] = {
    "fp32": _fp32(),
    "fp16-planes": _fp16_planes(),
    "e4m3-plane": _plane(_fp16_planes(), _decode_high_fp16, "high", "scales"),
    "e4m3-row": _e4m3_row(),
    "int8-row": _int8(None),
    **{f"int8-g{size}": _int8(size) for size in int8.GROUP_SIZES},
    "int8-nibbles-g64": _int8_nibbles(64),
    "int4-plane-g64": _plane(_int8_nibbles(64), _decode_high_int8, "high", "scales"),
    **{f"int4-g{size}": _int4(size) for size in int4.GROUP_SIZES},
    **{f"int4-g{size}-asymmetric": _int4_asymmetric(size) for size in int4.GROUP_SIZES},
    **{f"int4-g{size}-minimum": _int4_minimum(size) for size in int4.MINIMUM_GROUP_SIZES},
    "nf4-g64": _bitsandbytes("nf4"),
    "bnb-fp4-g64": _bitsandbytes("fp4"),
    "nvfp4": _nvfp4(),
    "mxfp4": _mxfp4(),
}
"""Codec of each name in ``qspec.quant.weight_formats``."""
