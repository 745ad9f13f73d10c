"""A linear layer on a GPU: which kernel multiplies, by the formats of its method's variant alone.

A verifier's kernels are row-invariant, which no library promises; a drafter's need not be. What lies in the arena is
read as it is; scales of tokens, and of rows, are multiplied in by the operation that reads the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.engine.cuda_buffers import PassBuffers, gpu_table
from qspec.errors import InvalidInput
from qspec.kernels.triton.activation_forms import Form
from qspec.kernels.triton.elementwise import Activations, Pieces
from qspec.kernels.triton.fp8_linear import fp8_product
from qspec.kernels.triton.group_linear import GroupWeight, group_pieces
from qspec.kernels.triton.group_linear import tile_for as group_tile
from qspec.kernels.triton.int8_linear import int8_pieces
from qspec.kernels.triton.int8_linear import tile_for as int8_tile
from qspec.kernels.triton.plane_linear import PlaneWeight, product_pieces
from qspec.kernels.triton.tuned import Cut
from qspec.quant.codecs import Parts
from qspec.quant.methods import Choice, Variant
from qspec.quant.planes import HIGH_SCALE
from qspec.quant.weight_formats import WEIGHT_FORMATS

_PLANES = ("fp16-planes", "e4m3-plane")
_HIGH_NIBBLES = "int4-plane-g64"


@dataclass(frozen=True, slots=True)
class CudaLinear:
    """One layer's weight, in place, and how it is multiplied."""

    weight: PlaneWeight | GroupWeight
    cut: Cut
    forms: tuple[Form, Form]
    """What it reads in small batches, and in large ones."""
    large: int
    """Rows of the smallest large batch."""
    scales: Tensor
    """``[N]`` fp32: what the next operation multiplies with."""
    one: Tensor
    """The fp32 number 1 on the device, which the library's fp8 product wants."""

    @classmethod
    def of(cls, choice: Choice, name: str, stored: Parts, inputs: int) -> CudaLinear:
        """Layer ``name`` over the ``stored`` parts of the choice's weights. ``InvalidInput`` for what has no kernel.

        ``inputs``: how many there are; rows may be longer in memory.
        """
        variant, table = choice.variant, gpu_table()
        weight = _weight(variant.weights, stored, inputs)
        form = _form(variant, name)
        forms = form, form if choice.batched is None else _form(choice.batched, name)
        outputs, device = _shape(weight)[0], stored["scales"].device
        cut = table.linear(outputs, inputs).cut(weight.reads) if isinstance(weight, PlaneWeight) else (
            table.linear(outputs, inputs).high)
        scales = weight.scales if isinstance(weight, PlaneWeight) else torch.ones(outputs, device=device)
        if variant.weights == _HIGH_NIBBLES:
            scales = scales * 16  # of the codes that the plane stands for
        if form in (Form.INT8, Form.INT8_AS_HALF):
            scales = scales / HIGH_SCALE  # which the next operation takes for missing
        return cls(weight, cut, forms, table.e4m3_rows, scales, torch.ones((), device=device))

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return _shape(self.weight)

    def form(self, rows: int) -> Form:
        """What it reads in a pass of ``rows`` rows, padding included."""
        return self.forms[rows >= self.large]

    def product(self, x: Activations, buffers: PassBuffers) -> Pieces:
        """Multiply, into the buffer for pieces unless a library does it."""
        weight, split = self.weight, self.cut.split
        if isinstance(weight, PlaneWeight) and x.form is Form.E4M3:
            return Pieces(fp8_product(x, weight.high, self.one)[None], self.scales, x.scales)
        rows = x.values.shape[0]
        pieces = buffers.pieces(split, rows, self.shape[0])
        if isinstance(weight, GroupWeight):
            group_pieces(x.values, weight, split, group_tile(rows), pieces)
        elif x.form is Form.INT8:
            int8_pieces(x.values, weight.high, split, int8_tile(rows), pieces)
        else:
            product_pieces(x.values, weight, split, self.cut.tile(rows), pieces)
        return Pieces(pieces, self.scales, x.scales)


def _form(variant: Variant, name: str) -> Form:
    """What a layer of a variant reads. Attention writes fp16: a token's scale would need a whole row in one program."""
    if variant.activations == "fp32" or name.endswith("attention_out"):
        return Form.HALF
    if variant.activations == "e4m3 per token" and variant.weights in _PLANES:
        return Form.E4M3
    if variant.activations == "int8 per token":
        return Form.INT8 if variant.weights == "int8-row" else Form.INT8_AS_HALF
    raise InvalidInput.field(
        "draft_quantization", f"no kernel for GPUs multiplies {variant.weights} weights with {variant.activations}")


def _weight(weights: str, stored: Parts, inputs: int) -> PlaneWeight | GroupWeight:
    if weights in _PLANES:
        return plane_weight(stored, inputs)
    if weights == "int8-row":
        return PlaneWeight(stored["codes"][:, :inputs], None, stored["scales"].view(-1))
    size = WEIGHT_FORMATS[weights].group_size
    if size is None or not weights.startswith(("int8-", "int4-")):
        raise InvalidInput.field("device", f"no kernel for GPUs reads {weights} weights; use --device cpu")
    codes = stored["codes"] if "codes" in stored else stored["high"]
    width = inputs if codes.dtype is torch.int8 else inputs // 2
    low, scales = stored.get("low"), stored["scales"]
    return GroupWeight(codes[:, :width], None if low is None else low[:, :width], scales, size)


def plane_weight(stored: Parts, inputs: int) -> PlaneWeight:
    """A weight in planes whose rows may be longer in memory than its ``inputs``."""
    low = stored.get("low")
    return PlaneWeight(
        stored["high"].view(torch.uint8)[:, :inputs], None if low is None else low[:, :inputs],
        stored["scales"].view(-1))


def _shape(weight: PlaneWeight | GroupWeight) -> tuple[int, int]:
    if isinstance(weight, GroupWeight):
        return weight.shape
    outputs, inputs = weight.high.shape
    return outputs, inputs
