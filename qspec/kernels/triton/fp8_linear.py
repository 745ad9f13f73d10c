"""The drafter's product: e4m3 activations times the high plane, by the library.

``torch._scaled_mm`` with one scale for the whole tensor is the fastest fp8 product there is on Hopper; with scales per
row it is a fifth slower. So it multiplies with scale 1, and the token's scale, the weight row's power of two and the
plane's 2⁻⁸ are multiplied in by the operation that reads the product (``apply_scales``, or ``elementwise`` by handing
it ``Pieces`` whose numbers went through here). It promises no bits across row counts, and a drafter needs none.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qspec.errors import InvalidInput
from qspec.kernels.triton.elementwise import Activations
from qspec.kernels.triton.overlap import launch_options, wait_for_inputs
from qspec.quant.planes import HIGH_SCALE

_ALIGNMENT = 16
"""The library wants inputs and outputs in multiples of this."""


@triton.jit(do_not_specialize=["M"])
def _scale_kernel(
    numbers, token_scales, scales, out, M, width, plane_scale, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):  # fmt: skip
    wait_for_inputs(OVERLAP)
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < width
    scale = tl.load(scales + at, mask=mask, other=0.0) * (tl.load(token_scales + row) * plane_scale)
    y = tl.load(numbers + row * width + at, mask=mask, other=0.0).to(tl.float32) * scale
    tl.store(out + row * width + at, y.to(out.dtype.element_ty), mask=mask)


def apply_scales(numbers: Tensor, activations: Activations, scales: Tensor, out: Tensor) -> None:
    """Turn ``fp8_product``'s numbers into the layer's output ``[M, N]``; ``out`` may be ``numbers`` itself.

    ``scales``: ``[N]`` fp32, the weight rows' powers of two.
    """
    if activations.scales is None:
        raise InvalidInput.field("activations", "are not quantised: they have no scales")
    rows, width = numbers.shape
    block = 1024
    _scale_kernel[(rows, triton.cdiv(width, block))](
        numbers, activations.scales, scales, out, rows, width, HIGH_SCALE, BLOCK=block, num_warps=4,
        **launch_options())


def fp8_product(activations: Activations, high: Tensor, one: Tensor) -> Tensor:
    """``codes · highᵀ`` without any scale: ``[M, N]`` bf16, whose range holds it where fp16's would not.

    ``high``: ``[N, K]`` uint8 or e4m3; ``one``: the fp32 number 1 on the device, made once (a graph captures no copy).
    """
    outputs, inputs = high.shape
    if inputs % _ALIGNMENT or outputs % _ALIGNMENT:
        raise InvalidInput.field("weight", f"has shape {outputs}×{inputs}; fp8 products need multiples of {_ALIGNMENT}")
    weight = high.view(torch.float8_e4m3fn).t()
    return torch._scaled_mm(
        activations.values, weight, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
