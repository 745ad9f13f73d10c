"""Random layers in stored formats, and what ``qspec.kernels.reference`` says that they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qspec.kernels import reference
from qspec.kernels.native.weights import LayerWeights
from qspec.quant import e4m3
from qspec.quant.codecs import CODECS
from qspec.quant.nibbles import sign_extend, unpack_nibbles
from qspec.quant.planes import merge_fp16, merge_int8

BITSANDBYTES_VALUES = {"nf4-g64": reference.NF4_VALUES, "bnb-fp4-g64": reference.BITSANDBYTES_FP4_VALUES}


def random_weights(
    weight_format: str, outputs: int, inputs: int, *, activations: str = "fp32", bias: bool = True, seed: int = 0
) -> LayerWeights:
    """A layer whose rows differ in size, as those of models do."""
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=source) * torch.rand(outputs, 1, generator=source) * 3
    parts = CODECS[weight_format].encode(weight, "weight") if weight_format != "fp32" else {"": weight}
    return LayerWeights(
        weight_format,
        {name: part.contiguous() for name, part in parts.items()},
        activations,
        torch.randn(outputs, generator=source) if bias else None,
    )


def decoded(weights: LayerWeights) -> Tensor:
    """The weight ``[out, in]`` that the parts stand for."""
    return weights.parts[""] if weights.format == "fp32" else CODECS[weights.format].decode(weights.parts)


def expected(weights: LayerWeights, x: Tensor) -> Tensor:
    """The layer's output in float64, by the definition of its kind."""
    parts, bias = weights.parts, weights.bias
    if weights.activations == "int8 per token":
        if weights.format == "int8-row":
            return reference.linear_w8a8(x, parts["codes"], parts["scales"][:, 0], bias)
        if weights.format.endswith("-minimum"):
            codes, scales = reference.quantize_rows_int8(x)
            return expected(replace(weights, activations="fp32"), codes.double() * scales.double())
        codes, scales = integer_codes(weights.format, parts)
        return reference.linear_w4a8(x, codes, scales, bias)
    if weights.activations == "e4m3 per token":
        if weights.format == "e4m3-row":
            return reference.linear_fp8(x, parts["codes"], parts["scales"], bias)
        if weights.format == "e4m3-plane":
            return reference.linear_fp8(x, parts["high"], parts["scales"] * 2.0**-8, bias)
        x = e4m3.dequantize_rows(*e4m3.quantize_rows(x, "activations"))
    if weights.format == "fp32":
        return reference.linear(x, parts[""].t(), bias)
    if weights.format == "fp16-planes":
        return reference.linear_fp16(x, merge_fp16(parts["high"], parts["low"]), parts["scales"], bias)
    if weights.format == "e4m3-plane":
        return reference.linear_fp8_plane(x, parts["high"], parts["scales"], bias)
    if weights.format == "e4m3-row":
        return reference.linear(x, (parts["codes"].double() * parts["scales"].double()).t(), bias)
    if weights.format.endswith("-asymmetric"):
        codes = unpack_nibbles(parts["codes"])
        return reference.linear_int4_asymmetric(x, codes, parts["scales"], parts["zeros"], bias)
    if weights.format.endswith("-minimum"):
        codes = unpack_nibbles(parts["codes"])
        return reference.linear_int4_minimum(x, codes, parts["scales"], parts["minima"], bias)
    if weights.format in BITSANDBYTES_VALUES:
        codes = torch.stack((parts["codes"] >> 4, parts["codes"] & 15), dim=-1).flatten(-2)  # the even one is high
        values = BITSANDBYTES_VALUES[weights.format]
        return reference.linear_bitsandbytes(x, codes, parts["scales"], values, bias)
    codes, scales = integer_codes(weights.format, parts)
    return reference.linear_int8(x, codes, scales, bias)


def integer_codes(weight_format: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Symmetric codes ``[out, in]`` and their scales ``[out, groups]``; zero points are taken off the codes."""
    scales = parts["scales"]
    if weight_format == "int8-nibbles-g64":
        return merge_int8(sign_extend(unpack_nibbles(parts["high"])), sign_extend(unpack_nibbles(parts["low"]))), scales
    if weight_format == "int4-plane-g64":
        return sign_extend(unpack_nibbles(parts["high"])), scales * 16
    if weight_format.endswith("-asymmetric"):
        codes = unpack_nibbles(parts["codes"]).to(torch.int16)
        size = codes.shape[1] // scales.shape[1]
        return codes - parts["zeros"].to(torch.int16).repeat_interleave(size, dim=1), scales
    if weight_format.startswith("int4"):
        return sign_extend(unpack_nibbles(parts["codes"])), scales
    return parts["codes"], scales
