"""Linear layers of the two workers, built from what lies in the arena or in the converted model.

What a layer is multiplied with follows from the formats of its method's variant alone: fp32 by fp32 and packed int8 by
int8 have kernels, every other pair is emulated with the codec of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from qspec.interfaces import MemoryItem
from qspec.kernels.emulated_linear import BYTES_PER_WORKING_WEIGHT, EmulatedLinear
from qspec.kernels.int8_linear import Int8Linear, activation_levels
from qspec.kernels.native.loading import instruction_sets
from qspec.kernels.row_tiles import CANDIDATE_ROWS, RowTiles, probe_row_tiles, tiled_product
from qspec.models.decoder import Linear
from qspec.quant.activations import ACTIVATIONS
from qspec.quant.codecs import CODECS, Parts
from qspec.quant.method_plan import MethodPlan
from qspec.quant.methods import Backend, Choice

_WIDE_OUTPUTS = 16384
_WIDE_CANDIDATES = tuple(rows for rows in CANDIDATE_ROWS if rows <= 32)
"""A projection onto a vocabulary only ever sees the rows that are decided on; larger tiles cost probing time."""

PACKED_WEIGHTS, PACKED_ACTIVATIONS = "int8-row", "int8 per token"
"""What fbgemm multiplies; its packed copy is private to the drafter."""


class TiledLinear:
    """``x @ weight + bias`` in float32, row-invariant (``qspec.kernels.row_tiles``); reads ``weight`` in place."""

    def __init__(self, weight: Tensor, bias: Tensor | None, tiles: RowTiles) -> None:
        self._weight, self._bias, self._tiles = weight, bias, tiles  # [in, out], [out]

    def __call__(self, x: Tensor) -> Tensor:
        y = tiled_product(self._multiply, x, self._tiles)
        return y if self._bias is None else y.add_(self._bias)

    def _multiply(self, x: Tensor) -> Tensor:
        return x @ self._weight


class PlainLinear:
    """``x @ weight + bias`` in float32, however the library likes it: for drafting."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self._weight if self._bias is None else torch.addmm(self._bias, x, self._weight)


def is_plain(choice: Choice) -> bool:
    """Whether the fp32 weights themselves are multiplied with."""
    return (choice.variant.weights, choice.variant.activations) == ("fp32", "fp32")


def is_packed(choice: Choice) -> bool:
    """Whether a drafter on torch's operations multiplies with fbgemm's packed int8 weights."""
    return (choice.variant.weights, choice.variant.activations) == (PACKED_WEIGHTS, PACKED_ACTIVATIONS)


def verifier_linears(
    plan: MethodPlan, parts: Mapping[str, Parts], tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Linear], RowTiles]:
    """The verifier's linear layers, and the row tiles that all their shapes share.

    ``parts``: the stored weight of each layer in its format of ``plan``; ``tensors``: biases; ``shapes``: of the fp32
    weights ``[in, out]``. Tiles are probed for each shape and format: how a weight lies in memory decides on the
    library's kernel.
    """
    probed: dict[tuple[tuple[int, ...], str], RowTiles] = {}
    linears: dict[str, Linear] = {}
    for name, stored in parts.items():
        shape, weights = shapes[name], plan.weights(name)
        if (shape, weights) not in probed:
            candidates = _WIDE_CANDIDATES if shape[1] >= _WIDE_OUTPUTS else CANDIDATE_ROWS
            row = torch.randn(shape[0], generator=torch.Generator().manual_seed(0))
            multiply = CODECS[weights].decode(stored).t().__rmatmul__
            probed[shape, weights] = probe_row_tiles(multiply, row, candidates)
        bias, tiles = tensors.get(name + ".bias"), probed[shape, weights]
        if is_plain(plan.layers[name]):
            linears[name] = TiledLinear(stored[""], bias, tiles)
        else:
            linears[name] = _emulated(plan.layers[name], stored, bias, tiles)
    common = set.intersection(*(set(tiles.sizes) for tiles in probed.values()))
    return linears, RowTiles(tuple(sorted(common)) or (1,))


def drafter_linears(plan: MethodPlan, parts: Mapping[str, Parts], tensors: Mapping[str, Tensor]) -> dict[str, Linear]:
    """The drafter's linear layers over stored weights; arguments as for ``verifier_linears``."""
    linears: dict[str, Linear] = {}
    for name, stored in parts.items():
        bias = tensors.get(name + ".bias")
        if is_plain(plan.layers[name]):
            linears[name] = PlainLinear(stored[""], bias)
        else:
            linears[name] = _emulated(plan.layers[name], stored, bias, tiles=None)
    return linears


def _emulated(choice: Choice, stored: Parts, bias: Tensor | None, tiles: RowTiles | None) -> EmulatedLinear:
    decode = partial(CODECS[choice.variant.weights].decode, stored)
    return EmulatedLinear(decode, bias, ACTIVATIONS[choice.variant.activations], tiles)


def packed_linears(
    names: list[str],
    int8: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    progress: Callable[[str, float | None], None],
) -> dict[str, Int8Linear]:
    """The drafter's linear layers for ``w8a8``; ``int8`` holds ``NAME.codes`` and ``NAME.scales``."""
    linears = {}
    for index, name in enumerate(names):
        bias = tensors.get(name + ".bias")
        linears[name] = Int8Linear(int8[f"{name}.codes"], int8[f"{name}.scales"], bias)
        progress("packing int8 weights", (index + 1) / len(names))
    return linears


def working_memory(plan: MethodPlan, shapes: Mapping[str, tuple[int, ...]], layers: Iterable[str]) -> list[MemoryItem]:
    """What an emulation needs to dequantise the largest matrix of ``layers``; nothing where none is emulated."""
    if plan.backend is not Backend.CPU:
        return []
    sizes = [torch.Size(shapes[name]).numel() for name in layers if not is_plain(plan.layers[name])]
    if not sizes:
        return []
    return [MemoryItem(name="one dequantised matrix", bytes=BYTES_PER_WORKING_WEIGHT * max(sizes), shared=False)]


def kernel_name(choice: Choice, backend: Backend) -> str:
    """What multiplies a layer of this choice, unless it is packed; an emulation says so."""
    variant = choice.variant
    if backend is Backend.CPU_NATIVE:
        return f"native {instruction_sets()[0]}: {variant.weights} weights, {variant.activations} activations"
    if backend is Backend.CUDA:
        activations = "fp16" if variant.activations == "fp32" else variant.activations
        if choice.batched is not None:
            activations += f" ({choice.batched.activations} in large batches)"
        return f"Triton: {variant.weights} weights, {activations} activations"
    if is_plain(choice):
        return "torch fp32"
    return f"emulated in torch fp32: {variant.weights} weights, dequantised per call, {variant.activations} activations"


def kernel_names(plan: MethodPlan) -> list[str]:
    """The names of all kernels of a verifier, in the order of use."""
    return list(dict.fromkeys(kernel_name(choice, plan.backend) for choice in plan.layers.values()))


def packed_name() -> str:
    """Kernel name of the packed int8 layers."""
    bits = 8 if activation_levels() == 127 else 7
    return f"fbgemm int8 x int8, {bits}-bit activations per token"
